"""Tool calls in a model's text: every split of the text gives the same calls, and no text is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.engine.reading.read import folded, read, split
from tests.engine.reading.tool_texts import BAD, GOOD, ONE_CALL, OULU_TEXT, TOOLS, Said
from tokka.core import Tools
from tokka.engine.reading.call_reader import CallReader
from tokka.engine.reading.forms import ARRAY, FORMS, READABLE, Form
from tokka.engine.reading.pieces import CallPiece, ParseWhole

SAID = [said for said in [*GOOD, *BAD] if said.parser in READABLE]


def show(said: Said) -> str:
    return f"{said.parser}-{said.text[:30]!r}"


@pytest.mark.parametrize("said", SAID, ids=show)
def test_reader_returns_the_calls_and_the_text_of_the_model(said: Said) -> None:
    calls, text = read(FORMS[said.parser], [said.text])
    assert tuple((name, json.loads(arguments)) for name, arguments in calls) == said.calls
    assert text == said.content


@pytest.mark.parametrize("said", SAID, ids=show)
def test_one_character_at_a_time_gives_the_same(said: Said) -> None:
    assert read(FORMS[said.parser], list(said.text)) == read(FORMS[said.parser], [said.text])


@given(st.sampled_from(SAID), st.lists(st.integers(0, 400), max_size=8), st.integers(0, 400), st.booleans())
def test_every_split_of_a_text_or_its_beginning_gives_the_same(
    said: Said, cuts: list[int], end: int, cut_short: bool
) -> None:
    text = said.text[:end]
    whole = read(FORMS[said.parser], [text], cut_short=cut_short)
    assert read(FORMS[said.parser], split(text, cuts), cut_short=cut_short) == whole


_words = st.sampled_from(
    [
        *(
            '{"name": "now", "arguments": {}}',
            '{"name": "',
            'now", "arguments": {"a": 1',
            "}",
            "{",
            "]",
            "[",
            '"',
            "\\",
        ),
        *(" ", "\n", "text", "now", "get_weather", ",", ";", ":", "ä🦌", "```json", "```", "[ARGS]", "function"),
        *{mark for form in FORMS.values() for mark in form.marks},
    ]
)


@given(st.sampled_from(READABLE), st.lists(_words, max_size=12), st.lists(st.integers(0, 200), max_size=6))
def test_whatever_a_model_writes_every_split_gives_the_same(parser: str, words: list[str], cuts: list[int]) -> None:
    text = "".join(words)
    assert read(FORMS[parser], split(text, cuts)) == read(FORMS[parser], [text])


@given(st.sampled_from(READABLE), st.lists(_words, max_size=12))
def test_a_text_without_calls_is_passed_on_as_it_is(parser: str, words: list[str]) -> None:
    text = "".join(words)
    calls, shown = read(FORMS[parser], [text])
    if not calls:
        assert shown == text


@given(st.text(max_size=40), st.sampled_from(READABLE))
def test_text_is_not_held_back_without_need(text: str, parser: str) -> None:
    assume(not any(mark in text for mark in FORMS[parser].marks))
    reader = CallReader(FORMS[parser], TOOLS)
    shown = folded(reader.feed(f"Answer: {text}"))[1]
    assert shown + reader.held == f"Answer: {text}"
    assert len(reader.held) < max(map(len, FORMS[parser].marks))


def test_markers_behind_a_call_are_not_held_as_text() -> None:
    reader = CallReader(FORMS["hermes"], TOOLS)
    reader.feed('<tool_call>{"name": "now", "arguments": {}}\n</tool_')
    assert reader.held == ""
    reader.feed("call>\nAnd so")
    assert reader.held == ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("parser", ["hermes", "qwen3_xml"])
def test_a_long_call_takes_no_time_that_grows_with_its_square(parser: str) -> None:
    # The name comes last, so no part of the call is certain before.
    text = '<tool_call>{"arguments": {"a": "' + "{}x " * 100_000 + '"}, "name": "now"}</tool_call>'
    calls, shown = read(FORMS[parser], split(text, range(0, len(text), 4)), whole=finds(("now", "{}")))
    # The library does not get a text this long.
    assert ([name for name, _ in calls], shown) == ((["now"], "") if parser == "hermes" else ([], text))


def test_arguments_are_passed_on_as_they_come() -> None:
    reader = CallReader(FORMS["hermes"], TOOLS)
    got = [reader.feed(piece) for piece in ['<tool_call>{"name": "now"', ', "arguments": {"a', '": [1, ', "2]}}"]]
    assert [folded(pieces)[0] for pieces in got[:2]] == [[], [("now", '{"a')]]
    rest = [piece for pieces in got[2:] for piece in pieces if not isinstance(piece, str)]
    assert [isinstance(piece, CallPiece) and piece.arguments for piece in rest] == ['": [1, ', "2]}"]


def test_a_call_that_was_cut_short_has_the_arguments_so_far() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "Ou'
    assert read(FORMS["hermes"], [text], cut_short=True) == ([("get_weather", '{"city": "Ou')], "")


def test_invalid_arguments_are_returned_unchanged() -> None:
    calls, _ = read(FORMS["hermes"], ['<tool_call>{"name": "now", "arguments": {"a": }}</tool_call>'])
    assert calls == [("now", '{"a": }')]


@pytest.mark.parametrize("said", [said for said in SAID if len(said.calls) > 1], ids=show)
def test_of_several_calls_one_is_made_where_no_more_may_be(said: Said) -> None:
    calls, text = read(FORMS[said.parser], list(said.text), ONE_CALL)
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [said.calls[0]]
    assert text == said.content


def test_an_array_of_calls_is_read_as_they_come() -> None:
    text = '[{"name":"get_weather","parameters":' + OULU_TEXT + '},{"name":"now","parameters":{}}]'
    for pieces in ([text], list(text)):
        assert read(ARRAY, pieces) == ([("get_weather", OULU_TEXT), ("now", "{}")], "")


@pytest.mark.parametrize("chars", range(1, 36))
def test_an_array_that_was_cut_short_is_never_text(chars: int) -> None:
    assert read(ARRAY, ['[{"name":"get_weather","parameters":{}}]'[:chars]], cut_short=True) == ([], "")


# -- the parser library -----------------------------------------------------------------------------------------


def finds(*calls: tuple[str, str], text: str = "") -> ParseWhole:
    return lambda _: (list(calls), text)


def test_calls_that_only_the_library_finds_are_sent_at_the_end() -> None:
    found = finds(("now", "{}"), ("get_weather", OULU_TEXT))
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert read(FORMS["hermes"], list(text), whole=found)[0] == [("now", "{}"), ("get_weather", OULU_TEXT)]


def test_sent_calls_stay_when_the_library_finds_others() -> None:
    text = '<tool_call>{"name": "now", "arguments": {"a": 1}}</tool_call>'
    for found in (finds(), finds(("now", '{"a": 2}')), finds(("get_weather", "{}"))):
        assert read(FORMS["hermes"], list(text), whole=found) == ([("now", '{"a": 1}')], "")


PAY_TEXT = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oulu"}}</tool_call>'
PAY = ("get_weather", '{"city": "Oulu"}')


def test_call_found_only_by_the_library_is_sent_once() -> None:
    text = '<tool_call>{"why": "?", "name": "now", "arguments": {}}</tool_call>\n' + PAY_TEXT
    calls, _ = read(FORMS["hermes"], list(text), whole=finds(("now", "{}"), PAY))
    assert calls == [PAY, ("now", "{}")]
    # If only one call is allowed, it is the one that was sent.
    assert read(FORMS["hermes"], [text], ONE_CALL, finds(("now", "{}"), PAY))[0] == [PAY]


@given(st.lists(st.sampled_from(["{}", '{"a":1}', '{"a": 2}', '"{}"', "[]", "3"]), max_size=6), st.integers(0, 63))
def test_no_call_is_sent_twice_or_lost_that_the_library_finds(arguments: list[str], read_by_us: int) -> None:
    marked = [(read_by_us >> place & 1, value) for place, value in enumerate(arguments)]
    heads = ('{"why": 1, "name": "now", "arguments": ', '{"name": "now", "arguments": ')
    text = "".join(f"<tool_call>{heads[ours]}{value}}}</tool_call>" for ours, value in marked)
    calls, _ = read(FORMS["hermes"], [text], whole=finds(*(("now", value) for _, value in marked)))
    meant = [json.loads(value.strip('"')) for value in arguments if "{" in value]
    assert sorted(map(str, meant)) == sorted(str(json.loads(made)) for _, made in calls)


def test_nothing_is_sent_if_ours_contradicts_the_library() -> None:
    for found in (finds(("now", "{}"), ("now", "{}")), finds(("now", "{}")), finds()):
        assert read(FORMS["hermes"], [PAY_TEXT], whole=found)[0] == [PAY]


@pytest.mark.parametrize("arguments", ['"x"', "3", "[1]", '"[1]"', "true"])
def test_call_is_text_when_its_arguments_are_not_an_object(arguments: str) -> None:
    text = f'<tool_call>{{"name": "now", "arguments": {arguments}}}</tool_call>'
    assert read(FORMS["hermes"], list(text), whole=finds(("now", arguments))) == ([], text)


def test_the_library_is_not_asked_about_a_text_that_was_cut_short() -> None:
    assert read(FORMS["hermes"], ["x"], whole=finds(("now", "{}")), cut_short=True) == ([], "x")


def test_unknown_names_in_a_form_only_the_library_reads_are_calls() -> None:
    assert read(FORMS["pythonic"], ["[unknown()]"], whole=finds(("unknown", "{}"))) == ([("unknown", "{}")], "")


def test_an_unknown_name_sent_as_text_is_not_a_call_as_well() -> None:
    assert read(FORMS["hermes"], ["x"], whole=finds(("unknown", "{}"))) == ([], "x")
    text = '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'
    found = finds(("unknown", "{}"), ("now", "{}"))
    assert read(FORMS["hermes"], [text], whole=found)[0] == [("unknown", "{}"), ("now", "{}")]


@pytest.mark.parametrize("parser", ["hermes", "mistral", "pythonic"])
def test_a_function_the_request_forbids_is_not_called(parser: str) -> None:
    texts = {
        "hermes": '<tool_call>{"name": "now", "arguments": {}}</tool_call>',
        "mistral": "[TOOL_CALLS]now{}",
        "pythonic": "[now()]",
    }
    tools = Tools(TOOLS.functions, allowed=frozenset({"get_weather"}))
    assert read(FORMS[parser], [texts[parser]], tools, finds(("now", "{}"))) == ([], texts[parser])


@given(st.lists(st.integers(0, 80), max_size=6))
def test_library_reads_an_unknown_format_call_by_call(cuts: list[int]) -> None:
    def whole(text: str) -> tuple[list[tuple[str, str]], str]:
        assert text.startswith("<tool_call>")
        assert text.endswith("</tool_call>")
        return [("now", "{}")], ""

    text = "Hi <tool_call>a</tool_call>\n<tool_call>b</tool_call>\n"
    assert read(FORMS["qwen3_xml"], split(text, cuts), whole=whole) == ([("now", "{}")] * 2, "Hi ")


def test_a_text_of_an_unknown_form_comes_when_it_is_complete() -> None:
    reader = CallReader(Form(leading="", is_json=False), TOOLS, finds(("now", "{}"), text="Ok."))
    assert reader.feed("Ok. CALL now") == []
    assert folded(reader.finish(cut_short=False)) == ([("now", "{}")], "Ok.")

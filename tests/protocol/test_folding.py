"""Plain responses grow as JSON: the result is valid, and an echoed prompt is in memory once for all choices."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.bodies import completion
from tokka.core import Accepted, ChoiceDone, Event, Finished, PromptEcho, TextDelta, TokenLogprob, Usage
from tokka.protocol.completions import CompletionEncoder
from tokka.protocol.folding import JsonItems, JsonList, JsonObject, JsonText, RawJson

values = st.lists(st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=5), st.floats(-1, 1)), max_size=4)


@given(st.lists(st.tuples(st.booleans(), st.text(max_size=8))))
def test_text_grows_to_the_text_of_its_parts(parts: list[tuple[bool, str]]) -> None:
    text = JsonText()
    for is_shared, part in parts:
        text.add(RawJson(part) if is_shared else part)
    assert orjson.loads(b"".join(text.pieces())) == "".join(part for _, part in parts)


@given(st.lists(st.tuples(st.booleans(), values)))
def test_list_grows_to_the_list_of_its_parts(parts: list[tuple[bool, list[Any]]]) -> None:
    grown = JsonList()
    for is_shared, part in parts:
        grown.extend(RawJson(part) if is_shared else part)
    assert orjson.loads(b"".join(grown.pieces())) == [value for _, part in parts for value in part]


@given(st.lists(st.tuples(st.text(max_size=3), st.booleans(), values), min_size=1, unique_by=lambda field: field[0]))
def test_object_holds_grown_and_plain_values(fields: list[tuple[str, bool, list[Any]]]) -> None:
    mixed: dict[str, Any] = {}
    for name, is_grown, value in fields:
        mixed[name] = JsonList() if is_grown else value
        if is_grown:
            mixed[name].extend(value)
    assert orjson.loads(b"".join(JsonObject(mixed).pieces())) == {name: value for name, _, value in fields}


def test_items_hold_objects() -> None:
    text = JsonText()
    text.add('a "quoted" ä')
    items = JsonItems([JsonObject({"x": text}), JsonObject({"y": RawJson(1), "x": text, "z": JsonItems([])})])
    assert orjson.loads(b"".join(items.pieces())) == [{"x": 'a "quoted" ä'}, {"y": 1, "x": 'a "quoted" ä', "z": []}]


def test_echo_is_held_once_for_all_choices() -> None:
    scored = tuple(TokenLogprob(1, "word ", b"word ", -1.0) for _ in range(2000))
    events: list[Event] = [Accepted(((1,) * 2000,)), PromptEcho(0, "word " * 2000, scored)]
    for index in range(128):
        events += [TextDelta(index, "!", (2,), scored[:1]), ChoiceDone(index, "stop", None, -1.0)]
    encoder = CompletionEncoder(completion(echo=True, n=128, logprobs=1).answer_form(), "cmpl-1", "fp_1")
    fold = encoder.fold()
    for event in [*events, Finished(Usage(2000, 128))]:
        for chunk in encoder.feed(event):
            fold.add(chunk)
    pieces = fold.pieces()
    written = sum(map(len, pieces))
    held = sum({id(piece.obj if isinstance(piece, memoryview) else piece): len(piece) for piece in pieces}.values())
    assert written > 9_000_000
    assert held < 500_000
    assert len(orjson.loads(b"".join(pieces))["choices"]) == 128

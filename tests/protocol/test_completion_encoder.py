"""Text completions: streams agree with plain responses, choices are numbered by prompt, offsets match the text."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol import streams as streaming
from tests.protocol.bodies import completion
from tests.protocol.streams import Shape, streams
from tokka.core import Accepted, ChoiceDone, Event, Finished, PromptEcho, TextDelta, TokenLogprob, Usage
from tokka.protocol.completions import CompletionEncoder, CompletionRequest
from tokka.protocol.response_models import Completion


def chunks_of(asked: CompletionRequest, events: list[Event]) -> list[dict[str, Any]]:
    return streaming.chunks_of(CompletionEncoder(asked.answer_form(), "cmpl-1", "fp_1"), events)


def answer_of(asked: CompletionRequest, events: list[Event]) -> dict[str, Any]:
    return streaming.answer_of(CompletionEncoder(asked.answer_form(), "cmpl-1", "fp_1"), events)


def joined(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Join the chunks of a stream as a client does."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            whole = choices.setdefault(
                part["index"],
                {"text": "", "logprobs": {}, "token_ids": [], "finish_reason": None, "stop": None, "prompt": None},
            )
            whole["text"] += part["text"]
            for name, values in (part["logprobs"] or {}).items():
                whole["logprobs"].setdefault(name, []).extend(values)
            whole["token_ids"] += part.get("token_ids", [])
            whole["finish_reason"] = part["finish_reason"] or whole["finish_reason"]
            whole["stop"] = part.get("stop_reason", whole["stop"])
            whole["prompt"] = part.get("prompt_token_ids") or whole["prompt"]
    return choices


Case = tuple[dict[str, Any], list[Event]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = Shape(
        prompts=draw(st.integers(1, 3)),
        choices=draw(st.integers(1, 3)),
        alternatives=draw(st.none() | st.integers(0, 2)),
        echo=draw(st.booleans()),
    )
    fields = {
        "prompt": ["Hei"] * shape.prompts,
        "n": shape.choices,
        "echo": shape.echo,
        "logprobs": shape.alternatives,
        "return_token_ids": draw(st.booleans()),
    }
    return fields, draw(streams(shape))


@given(cases())
def test_joined_chunks_equal_the_plain_answer(case: Case) -> None:
    fields, events = case
    streamed = joined(chunks_of(completion(stream=True, **fields), events))
    plain = answer_of(completion(**fields), events)
    assert [choice["index"] for choice in plain["choices"]] == sorted(streamed)
    for choice in plain["choices"]:
        assert streamed[choice["index"]] == {
            "text": choice["text"],
            "logprobs": {name: values for name, values in (choice["logprobs"] or {}).items() if values},
            "token_ids": choice.get("token_ids") or [],
            "finish_reason": choice["finish_reason"],
            "stop": choice["stop_reason"],
            "prompt": choice.get("prompt_token_ids"),
        }


@given(cases())
def test_each_choice_holds_its_prompt_and_its_text(case: Case) -> None:
    fields, events = case
    echoes = {event.prompt_index: event.text for event in events if isinstance(event, PromptEcho)}
    for choice in answer_of(completion(**fields), events)["choices"]:
        own = [event.text for event in events if isinstance(event, TextDelta) and event.index == choice["index"]]
        assert choice["text"] == echoes.get(choice["index"] // fields["n"], "") + "".join(own)


@given(cases(), st.booleans(), st.booleans())
def test_every_chunk_has_the_documented_form(case: Case, include: bool, continuous: bool) -> None:
    fields, events = case
    options = {"include_usage": include, "continuous_usage_stats": continuous}
    chunks = chunks_of(completion(stream=True, stream_options=options, **fields), events)
    assert chunks
    for chunk in chunks:
        Completion.model_validate_json(orjson.dumps(chunk))


@given(cases())
def test_every_answer_has_the_documented_form(case: Case) -> None:
    fields, events = case
    Completion.model_validate_json(orjson.dumps(answer_of(completion(**fields), events)))


@given(cases())
def test_each_choice_of_a_stream_ends_exactly_once(case: Case) -> None:
    fields, events = case
    chunks = chunks_of(completion(stream=True, **fields), events)
    ended = [part["index"] for chunk in chunks for part in chunk["choices"] if part["finish_reason"]]
    assert sorted(ended) == list(range(len(fields["prompt"]) * fields["n"]))


@given(cases())
def test_text_offsets_are_where_the_tokens_begin_in_the_text(case: Case) -> None:
    fields, events = case
    for choice in answer_of(completion(**fields), events)["choices"]:
        if choice["logprobs"] is None:
            continue
        echoed = [
            token
            for event in events
            if isinstance(event, PromptEcho) and event.prompt_index == choice["index"] // fields["n"]
            for token in event.logprobs or ()
        ]
        own = [
            token
            for event in events
            if isinstance(event, TextDelta) and event.index == choice["index"]
            for token in event.logprobs or ()
        ]
        raw, expected = b"", []
        for token in echoed + own:
            # A token that begins inside a character has the offset of the character.
            expected.append(len(raw.decode(errors="ignore")))
            raw += token.bytes
        assert choice["logprobs"]["text_offset"] == expected


@given(cases())
def test_the_lists_of_logprobs_are_equally_long(case: Case) -> None:
    fields, events = case
    for choice in answer_of(completion(**fields), events)["choices"]:
        assert len({len(values) for values in (choice["logprobs"] or {}).values()}) <= 1


def one_choice(index: int, text: str, ids: int = 1, total: float | None = None) -> list[Event]:
    return [TextDelta(index, text, tuple(range(ids))), ChoiceDone(index, "stop", None, total)]


def whole(prompts: int, *parts: list[Event]) -> list[Event]:
    events: list[Event] = [Accepted(((1, 2),) * prompts)]
    for part in parts:
        events += part
    return [*events, Finished(Usage(2 * prompts, len(parts)))]


def test_choices_are_numbered_prompt_by_prompt() -> None:
    events = whole(2, *(one_choice(index, f"text {index}") for index in (3, 1, 0, 2)))
    answer = answer_of(completion(prompt=["a", "b"], n=2), events)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (index, f"text {index}") for index in range(4)
    ]


def test_best_of_returns_the_likeliest_of_each_prompt() -> None:
    events = whole(
        2,
        *(
            one_choice(index, f"text {index}", total=total)
            for index, total in enumerate([-3.0, -1.0, -2.0, -1.0, -5.0, -4.0])
        ),
    )
    answer = answer_of(completion(prompt=["a", "b"], best_of=3), events)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "text 1"), (1, "text 3")]


def test_best_of_compares_the_logprob_per_token() -> None:
    long_and_likely = one_choice(0, "long", ids=10, total=-5.0)
    short_and_unlikely = one_choice(1, "short", ids=1, total=-2.0)
    answer = answer_of(completion(best_of=2), whole(1, long_and_likely, short_and_unlikely))
    assert [choice["text"] for choice in answer["choices"]] == ["long"]


def test_best_of_shows_no_logprobs_that_nobody_asked_for() -> None:
    scored = TokenLogprob(1, "a", b"a", -1.0)
    parts: list[list[Event]] = [
        [TextDelta(index, "a", (1,), (scored,)), ChoiceDone(index, "stop", None, -1.0)] for index in range(2)
    ]
    answer = answer_of(completion(best_of=2), whole(1, *parts))
    assert answer["choices"][0]["logprobs"] is None


def test_best_of_equal_to_n_keeps_every_choice() -> None:
    events = whole(1, one_choice(0, "a", total=-2.0), one_choice(1, "b", total=-1.0))
    answer = answer_of(completion(n=2, best_of=2), events)
    assert [choice["text"] for choice in answer["choices"]] == ["a", "b"]


def test_echo_comes_before_the_text_of_each_choice() -> None:
    events = whole(1, one_choice(0, "!"), one_choice(1, "?"))
    events.insert(1, PromptEcho(0, "Hei", None))
    answer = answer_of(completion(n=2, echo=True), events)
    assert [choice["text"] for choice in answer["choices"]] == ["Hei!", "Hei?"]


def test_first_token_of_an_echo_has_null_logprobs() -> None:
    first, second = TokenLogprob(1, "H", b"H", None), TokenLogprob(2, "ei", b"ei", -1.0)
    events = whole(1, [ChoiceDone(0, "length", None, 0.0)])
    events.insert(1, PromptEcho(0, "Hei", (first, second)))
    logprobs = answer_of(completion(echo=True, logprobs=1, max_tokens=0), events)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [None, -1.0]
    assert logprobs["top_logprobs"][0] is None


def test_the_sampled_token_is_among_its_alternatives() -> None:
    top = TokenLogprob(3, "x", b"x", -0.5)
    scored = TokenLogprob(1, "a", b"a", -1.0, (top,))
    events = whole(1, [TextDelta(0, "a", (1,), (scored,)), ChoiceDone(0, "stop", None, -1.0)])
    logprobs = answer_of(completion(logprobs=1), events)["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"x": -0.5, "a": -1.0}]


def test_part_of_a_character_is_shown_as_its_bytes() -> None:
    half = TokenLogprob(1, "\ufffd", b"\xf0\x9f", -1.0)
    events = whole(1, [TextDelta(0, "", (1,), (half,)), ChoiceDone(0, "length", None, -1.0)])
    assert answer_of(completion(logprobs=0), events)["choices"][0]["logprobs"]["tokens"] == ["bytes:\\xf0\\x9f"]


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {}])
def test_without_being_asked_for_a_stream_holds_no_usage(options: dict[str, bool] | None) -> None:
    chunks = chunks_of(completion(stream=True, stream_options=options), whole(1, one_choice(0, "a")))
    assert [chunk for chunk in chunks if "usage" in chunk] == []


def test_include_usage_adds_a_last_chunk_without_choices() -> None:
    asked = completion(stream=True, stream_options={"include_usage": True})
    *chunks, last = chunks_of(asked, whole(1, one_choice(0, "a")))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 3
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)


def test_continuous_usage_counts_up_with_the_chunks() -> None:
    asked = completion(stream=True, stream_options={"continuous_usage_stats": True}, n=2)
    chunks = chunks_of(asked, whole(1, one_choice(0, "a", ids=2), one_choice(1, "b", ids=3)))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [2, 2, 5, 5]


def test_prompt_token_ids_belong_to_the_choice_s_own_prompt() -> None:
    events = whole(2, one_choice(0, "a"), one_choice(1, "b"))
    events[0] = Accepted(((1,), (2, 3)))
    answer = answer_of(completion(prompt=["a", "b"], return_token_ids=True), events)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[1], [2, 3]]


def test_first_chunk_of_a_choice_has_its_prompt_token_ids() -> None:
    events = whole(2, one_choice(0, "a"), one_choice(1, "b"))
    events[0] = Accepted(((1,), (2, 3)))
    chunks = chunks_of(completion(prompt=["a", "b"], return_token_ids=True, stream=True), events)
    shown: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            shown[choice["index"]].append(choice.get("prompt_token_ids"))
    assert shown == {0: [[1], None], 1: [[2, 3], None]}


@pytest.mark.parametrize("include", [None, False])
def test_no_usage_is_sent_when_include_usage_is_false(include: bool | None) -> None:
    options = {"include_usage": include, "continuous_usage_stats": True}
    chunks = chunks_of(completion(stream=True, stream_options=options), whole(1, one_choice(0, "a")))
    assert ["usage" in chunk for chunk in chunks] == [include is None] * len(chunks)


@given(cases(), st.booleans(), st.booleans())
def test_json_of_a_stream_is_that_of_its_chunks(case: Case, include: bool, continuous: bool) -> None:
    fields, events = case
    options = {"include_usage": include, "continuous_usage_stats": continuous}
    asked = completion(stream=True, stream_options=options, **fields)
    encoder = CompletionEncoder(asked.answer_form(), "cmpl-1", "fp_1")
    sent = [orjson.loads(data.removeprefix(b"data: ")) for event in events for data in encoder.encode(event)]
    # The two may have been created in different seconds.
    assert [{**chunk, "created": 0} for chunk in sent] == [
        {**chunk, "created": 0} for chunk in chunks_of(asked, events)
    ]

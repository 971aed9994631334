"""Chat responses: a stream and a plain response of the same events agree, and both have the documented form."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol import streams as streaming
from tests.protocol.streams import Shape, streams
from tokka.core import (
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from tokka.protocol.chat import ChatRequest
from tokka.protocol.chat_answer import ChatEncoder
from tokka.protocol.response_models import ChatCompletion, ChatCompletionChunk

USER = [{"role": "user", "content": "Hei"}]
FINISHED = Finished(Usage(3, 2, 1))
HELLO: list[Event] = [
    Accepted(((1, 2, 3),)),
    TextDelta(0, "Hel", (5,)),
    TextDelta(0, "lo", (6,)),
    ChoiceDone(0, "stop"),
    FINISHED,
]


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate_json(orjson.dumps({"model": "m", "messages": USER, **fields}))


def chunks_of(asked: ChatRequest, events: list[Event]) -> list[dict[str, Any]]:
    return streaming.chunks_of(ChatEncoder(asked.answer_form(), "chatcmpl-1", "fp_1"), events)


def answer_of(asked: ChatRequest, events: list[Event]) -> dict[str, Any]:
    return streaming.answer_of(ChatEncoder(asked.answer_form(), "chatcmpl-1", "fp_1"), events)


def joined(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Join the chunks of a stream as a client does."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            whole = choices.setdefault(
                part["index"],
                {"content": "", "role": None, "logprobs": [], "token_ids": [], "finish_reason": None, "stop": None},
            )
            whole["content"] += part["delta"].get("content") or ""
            whole["role"] = part["delta"].get("role") or whole["role"]
            whole["logprobs"] += (part["logprobs"] or {"content": []})["content"]
            whole["token_ids"] += part.get("token_ids", [])
            whole["finish_reason"] = part["finish_reason"] or whole["finish_reason"]
            whole["stop"] = part.get("stop_reason", whole["stop"])
    return choices


@st.composite
def conversations(draw: st.DrawFn) -> tuple[dict[str, Any], list[Event]]:
    n = draw(st.integers(1, 3))
    alternatives = draw(st.none() | st.integers(0, 2))
    fields: dict[str, Any] = {"n": n, "return_token_ids": draw(st.booleans())}
    if alternatives is not None:
        fields |= {"logprobs": True, "top_logprobs": alternatives}
    return fields, draw(streams(Shape(choices=n, alternatives=alternatives)))


@given(conversations())
def test_joined_deltas_equal_the_plain_answer(conversation: tuple[dict[str, Any], list[Event]]) -> None:
    fields, events = conversation
    streamed = joined(chunks_of(request(stream=True, **fields), events))
    plain = answer_of(request(**fields), events)
    assert [choice["index"] for choice in plain["choices"]] == sorted(streamed)
    for choice in plain["choices"]:
        assert streamed[choice["index"]] == {
            "content": choice["message"]["content"],
            "role": choice["message"]["role"],
            "logprobs": (choice["logprobs"] or {"content": []})["content"],
            "token_ids": choice.get("token_ids") or [],
            "finish_reason": choice["finish_reason"],
            "stop": choice["stop_reason"],
        }


@given(conversations())
def test_plain_answer_holds_all_text_and_tokens_of_the_events(
    conversation: tuple[dict[str, Any], list[Event]],
) -> None:
    fields, events = conversation
    for choice in answer_of(request(**fields), events)["choices"]:
        deltas = [event for event in events if isinstance(event, TextDelta) and event.index == choice["index"]]
        assert choice["message"]["content"] == "".join(delta.text for delta in deltas)
        if fields["return_token_ids"]:
            assert choice.get("token_ids") or [token for delta in deltas for token in delta.token_ids] == []
        if "logprobs" in fields:
            scored = [token.logprob for delta in deltas for token in delta.logprobs or ()]
            assert [token["logprob"] for token in (choice["logprobs"] or {"content": []})["content"]] == scored


@given(conversations(), st.booleans(), st.booleans())
def test_every_chunk_has_the_documented_form(
    conversation: tuple[dict[str, Any], list[Event]], include: bool, continuous: bool
) -> None:
    fields, events = conversation
    options = {"include_usage": include, "continuous_usage_stats": continuous}
    chunks = chunks_of(request(stream=True, stream_options=options, **fields), events)
    assert chunks
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(orjson.dumps(chunk))


@given(conversations())
def test_every_answer_has_the_documented_form(conversation: tuple[dict[str, Any], list[Event]]) -> None:
    fields, events = conversation
    ChatCompletion.model_validate_json(orjson.dumps(answer_of(request(**fields), events)))


@given(conversations())
def test_each_choice_of_a_stream_ends_exactly_once(conversation: tuple[dict[str, Any], list[Event]]) -> None:
    fields, events = conversation
    chunks = chunks_of(request(stream=True, **fields), events)
    ended = [part["index"] for chunk in chunks for part in chunk["choices"] if part["finish_reason"]]
    assert sorted(ended) == list(range(fields["n"]))


@given(conversations())
def test_the_role_comes_once_and_first(conversation: tuple[dict[str, Any], list[Event]]) -> None:
    fields, events = conversation
    parts = [part for chunk in chunks_of(request(stream=True, **fields), events) for part in chunk["choices"]]
    for index in range(fields["n"]):
        own = [part for part in parts if part["index"] == index]
        assert [part["delta"].get("role") for part in own] == ["assistant"] + [None] * (len(own) - 1)


def test_without_being_asked_for_a_stream_holds_no_usage() -> None:
    assert all("usage" not in chunk for chunk in chunks_of(request(stream=True), HELLO))


def test_include_usage_adds_a_last_chunk_without_choices() -> None:
    *chunks, last = chunks_of(request(stream=True, stream_options={"include_usage": True}), HELLO)
    assert last["choices"] == []
    counts = [last["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    assert counts == [3, 2, 5]
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)


def test_continuous_usage_counts_up_with_the_chunks() -> None:
    chunks = chunks_of(request(stream=True, stream_options={"continuous_usage_stats": True}), HELLO)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 2]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {3}


def test_usage_has_details_when_they_are_known() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *running, last = chunks_of(request(stream=True, stream_options=options), HELLO)
    assert all(chunk["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"} for chunk in running)
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 1


def test_plain_answer_reports_usage_with_cached_tokens() -> None:
    usage = answer_of(request(), HELLO)["usage"]
    assert usage["total_tokens"] == 5
    assert usage["prompt_tokens_details"]["cached_tokens"] == 1


def test_all_chunks_of_a_stream_share_id_and_time() -> None:
    chunks = chunks_of(request(stream=True, n=1), HELLO)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1


def test_a_step_without_news_makes_no_chunk() -> None:
    encoder = ChatEncoder(request(stream=True).answer_form(), "chatcmpl-1", "fp_1")
    assert encoder.feed(TextDelta(0, "", (5,))) == []


def test_a_step_without_text_still_delivers_its_token_ids() -> None:
    encoder = ChatEncoder(request(stream=True, return_token_ids=True).answer_form(), "chatcmpl-1", "fp_1")
    (chunk,) = encoder.feed(TextDelta(0, "", (5,)))
    assert chunk["choices"][0]["token_ids"] == [5]


def test_token_ids_of_the_prompt_are_returned_on_request() -> None:
    assert answer_of(request(return_token_ids=True), HELLO)["prompt_token_ids"] == [1, 2, 3]
    assert answer_of(request(), HELLO)["prompt_token_ids"] is None


def test_echo_puts_the_last_assistant_message_before_the_text() -> None:
    asked = request(
        messages=[*USER, {"role": "assistant", "content": "Oh, "}],
        echo=True,
        continue_final_message=True,
    )
    assert answer_of(asked, HELLO)["choices"][0]["message"]["content"] == "Oh, Hello"


@pytest.mark.parametrize("include", [None, True, False])
def test_reasoning_is_left_out_on_request(include: bool | None) -> None:
    events = [HELLO[0], ReasoningDelta(0, "Hm."), *HELLO[1:]]
    message = answer_of(request(include_reasoning=include), events)["choices"][0]["message"]
    assert ("reasoning_content" in message) == (include is not False)
    assert message["content"] == "Hello"


def test_part_of_a_character_is_shown_as_its_bytes() -> None:
    half = TokenLogprob(1, "\ufffd", b"\xf0\x9f", -1.0)
    events: list[Event] = [
        Accepted(((1,),)),
        TextDelta(0, "", (1,), (half,)),
        ChoiceDone(0, "length", None, -1.0),
        Finished(Usage(1, 1)),
    ]
    (content,) = answer_of(request(logprobs=True), events)["choices"][0]["logprobs"]["content"]
    assert content["token"] == "\\xf0\\x9f"
    assert content["bytes"] == [0xF0, 0x9F]


@pytest.mark.parametrize("stop", ["END", 7, "timeout", None])
def test_stop_reason_is_passed_on(stop: str | int | None) -> None:
    events: list[Event] = [Accepted(((1,),)), ChoiceDone(0, "stop", stop), Finished(Usage(1, 0))]
    assert answer_of(request(), events)["choices"][0]["stop_reason"] == stop


TOOL = {"type": "function", "function": {"name": "f"}}
EMPTY: list[Event] = [Accepted(((1, 2, 3),)), TextDelta(0, "", (5,)), ChoiceDone(0, "stop"), FINISHED]
CALLED: list[Event] = [Accepted(((1, 2, 3),)), ToolCallDelta(0, 0, "{}", "f"), ChoiceDone(0, "tool_calls"), FINISHED]


@pytest.mark.parametrize("fields", [{}, {"logprobs": True}, {"return_token_ids": True}], ids=str)
@pytest.mark.parametrize(
    ("events", "content"), [(EMPTY, ""), (HELLO, "Hello"), (CALLED, None)], ids=["empty", "text", "call"]
)
def test_content_beside_tools_is_the_same_in_a_stream(
    events: list[Event], content: str | None, fields: dict[str, Any]
) -> None:
    asked = request(tools=[TOOL], **fields)
    assert answer_of(asked, events)["choices"][0]["message"]["content"] == content
    encoder = ChatEncoder(request(tools=[TOOL], stream=True, **fields).answer_form(), "chatcmpl-1", "fp_1")
    chunks = [orjson.loads(data.removeprefix(b"data: ")) for event in events for data in encoder.encode(event)]
    parts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    said = [part for part in parts if part is not None]
    assert ("".join(said) if said else None) == content


def test_an_answer_without_any_text_has_empty_content() -> None:
    events: list[Event] = [Accepted(((1,),)), ChoiceDone(0, "stop"), Finished(Usage(1, 1))]
    assert answer_of(request(), events)["choices"][0]["message"]["content"] == ""


@given(conversations(), st.booleans(), st.booleans())
def test_json_of_a_stream_is_that_of_its_chunks(
    conversation: tuple[dict[str, Any], list[Event]], include: bool, continuous: bool
) -> None:
    fields, events = conversation
    options = {"include_usage": include, "continuous_usage_stats": continuous}
    asked = request(stream=True, stream_options=options, **fields)
    encoder = ChatEncoder(asked.answer_form(), "chatcmpl-1", "fp_1")
    sent = [orjson.loads(data.removeprefix(b"data: ")) for event in events for data in encoder.encode(event)]
    # The two may have been created in different seconds.
    assert [{**chunk, "created": 0} for chunk in sent] == [
        {**chunk, "created": 0} for chunk in chunks_of(asked, events)
    ]

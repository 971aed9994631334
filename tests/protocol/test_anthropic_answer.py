"""Responses of /v1/messages: the order of events, and a stream and a plain message that agree."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.streams import answer_of, texts
from tokka.core import Accepted, ChoiceDone, Event, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from tokka.errors import ContextLengthExceeded, EngineDied, ModelStarting, QuotaExceeded, TokkaError
from tokka.protocol.anthropic.answer import MessagesEncoder
from tokka.protocol.anthropic.errors import error_body
from tokka.protocol.anthropic.models import AnthropicEvent, AnthropicMessageObject
from tokka.protocol.chunks import AnswerForm

FORM = AnswerForm("m", True, 1, 1, None, True, False, False, False)
ACCEPTED = Accepted(((1, 2, 3),))
FINISHED = Finished(Usage(3, 2, 1))


def encoder(form: AnswerForm = FORM) -> MessagesEncoder:
    return MessagesEncoder(form, "msg_1", "fp")


def sent(events: Iterable[Event], form: AnswerForm = FORM) -> list[dict[str, Any]]:
    """Return the events as a client reads them. Each must be one piece with a name that equals its type."""
    made = encoder(form)
    read = []
    for piece in (piece for event in events for piece in made.encode(event)):
        name, data, rest = piece.decode().split("\n", 2)
        assert rest == "\n"
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        AnthropicEvent.model_validate(event)
        read.append(event)
    return read


def plain(events: Iterable[Event], form: AnswerForm = FORM) -> dict[str, Any]:
    answer = answer_of(encoder(form), events)
    AnthropicMessageObject.model_validate(answer)
    return answer


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the events of a stream as Anthropic's client does."""
    message: dict[str, Any] = events[0]["message"]
    arguments: dict[int, str] = {}
    is_open = False
    for event in events[1:]:
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                is_open = True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(message["content"]) - 1
                delta, block = event["delta"], message["content"][-1]
                if delta["type"] == "input_json_delta":
                    arguments[event["index"]] = arguments.get(event["index"], "") + delta["partial_json"]
                    continue
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
            case "content_block_stop":
                is_open = False
            case "message_delta":
                message |= {**event["delta"], "usage": {**message["usage"], **event["usage"]}}
    for index, text in arguments.items():
        message["content"][index]["input"] = json.loads(text)
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    content = [{**block, "id": "", "signature": ""} for block in message["content"]]
    return {**message, "content": content}


def choice(*events: Event, done: ChoiceDone | None = None) -> list[Event]:
    return [ACCEPTED, *events, done or ChoiceDone(0, "stop"), FINISHED]


ENDINGS = [ChoiceDone(0, "length"), ChoiceDone(0, "stop"), ChoiceDone(0, "stop", "END"), ChoiceDone(0, "tool_calls")]


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    for thought in draw(st.lists(texts, max_size=3)):
        events += [ReasoningDelta(0, thought), TextDelta(0, "", (1,))]
    events += [TextDelta(0, text, (1,)) for text in draw(st.lists(texts, max_size=3))]
    for number in range(draw(st.integers(0, 2))):
        events += [ToolCallDelta(0, number, '{"a": ', "now"), ToolCallDelta(0, number, '"ä"}'), TextDelta(0, "", (1,))]
    return choice(*events, done=draw(st.sampled_from(ENDINGS)))


@given(answers(), st.booleans())
def test_stream_and_plain_message_agree(events: list[Event], shows_reasoning: bool) -> None:
    form = replace(FORM, shows_reasoning=shows_reasoning)
    stream = sent(events, form)
    assert [event["type"] for event in stream[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in stream[-2:]] == ["message_delta", "message_stop"]
    assert without_ids(joined(stream)) == without_ids(plain(events, form))


def test_blocks_follow_each_other_without_overlap() -> None:
    events = choice(ReasoningDelta(0, "Hm."), TextDelta(0, "Hei", (1,)), ToolCallDelta(0, 0, "{}", "now"))
    kinds = [(event["type"], event.get("index")) for event in sent(events)]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds[2:-2] == [
        *((kind, 0) for kind in (*block[:2], "content_block_delta", block[2])),
        *((kind, 1) for kind in block),
        *((kind, 2) for kind in block),
    ]


@pytest.mark.parametrize("shows_reasoning", [True, False])
def test_thinking_block_is_signed(shows_reasoning: bool) -> None:
    events = choice(ReasoningDelta(0, "Hm."), TextDelta(0, "Hei", (1,)))
    form = replace(FORM, shows_reasoning=shows_reasoning)
    for message in (joined(sent(events, form)), plain(events, form)):
        thinking, text = message["content"]
        assert thinking["thinking"] == ("Hm." if shows_reasoning else "")
        assert thinking["signature"]
        assert text == {"type": "text", "text": "Hei", "citations": []}


@pytest.mark.parametrize(
    ("events", "reason", "sequence"),
    [
        (choice(TextDelta(0, "Hei", (1,))), "end_turn", None),
        (choice(done=ChoiceDone(0, "stop", "END")), "stop_sequence", "END"),
        (choice(done=ChoiceDone(0, "stop", 7)), "end_turn", None),
        (choice(done=ChoiceDone(0, "length")), "max_tokens", None),
        (choice(done=ChoiceDone(0, "length", "timeout")), "max_tokens", None),
        (choice(ToolCallDelta(0, 0, "{}", "now"), done=ChoiceDone(0, "tool_calls")), "tool_use", None),
        # A named tool: the engine reports `stop`.
        (choice(ToolCallDelta(0, 0, "{}", "now")), "tool_use", None),
        (choice(ToolCallDelta(0, 0, '{"a', "now"), done=ChoiceDone(0, "length")), "max_tokens", None),
    ],
)
def test_stop_reason_tells_how_the_message_ended(events: list[Event], reason: str, sequence: str | None) -> None:
    message = plain(events)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert sent(events)[-2]["delta"].items() >= {"stop_reason": reason, "stop_sequence": sequence}.items()


def test_input_of_a_call_that_was_cut_short_is_empty() -> None:
    events = choice(ToolCallDelta(0, 0, '{"a', "now"), done=ChoiceDone(0, "length"))
    assert plain(events)["content"][0]["input"] == {}


def test_usage_separates_cached_tokens() -> None:
    usage = {"input_tokens": 2, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 1, "output_tokens": 2}
    details = {"output_tokens_details": {"thinking_tokens": 0}, "server_tool_use": None}
    stream = sent(choice())
    at_start = {"input_tokens": 3, "cache_read_input_tokens": 0, "output_tokens": 0}
    assert stream[0]["message"]["usage"].items() >= {**usage, **details, **at_start}.items()
    assert stream[-2]["usage"] == {**usage, **details}
    assert plain(choice())["usage"].items() >= {**usage, **details}.items()


def test_error_is_the_last_event_of_a_stream() -> None:
    (piece,) = encoder().fail(EngineDied())
    name, data = piece.decode().strip().split("\n")
    assert name == "event: error"
    assert orjson.loads(data.removeprefix("data: ")) == error_body(EngineDied())
    assert encoder().end == b""


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (431, "request_too_large"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_status_has_its_type_of_error(status: int, kind: str) -> None:
    error = TokkaError("Why")
    error.status = status
    assert error_body(error, "r") == {"type": "error", "error": {"type": kind, "message": "Why"}, "request_id": "r"}


def test_errors_keep_their_message() -> None:
    for error in (ModelStarting("Later."), QuotaExceeded("No more.")):
        assert error_body(error)["error"]["message"] == error.message


def test_long_prompt_is_told_in_the_words_of_anthropic() -> None:
    error = ContextLengthExceeded("Too long", param="messages", prompt_tokens=5000, maximum=4095)
    assert error_body(error)["error"]["message"] == "prompt is too long: 5000 tokens > 4095 maximum"
    assert error_body(ContextLengthExceeded("Too long", param="messages"))["error"]["message"] == "Too long"

"""Streams of responses: order, numbers and form of the events, and the plain response that they fold to."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.streams import answer_of, chunks_of
from tokka.core import (
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from tokka.errors import EngineDied
from tokka.protocol.responses.encoder import ResponsesEncoder
from tokka.protocol.responses.models import ResponseObject
from tokka.protocol.responses.request import ResponsesRequest

ACCEPTED = Accepted(((1, 2, 3),))
FINISHED = Finished(Usage(3, 5, 1, 2))
# The fields that Open Responses demands in every response object.
FIELDS = {
    *("background", "completed_at", "created_at", "error", "frequency_penalty", "id", "incomplete_details"),
    *("instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "object", "output"),
    *("parallel_tool_calls", "presence_penalty", "previous_response_id", "prompt_cache_key", "reasoning"),
    *("safety_identifier", "service_tier", "status", "store", "temperature", "text", "tool_choice", "tools"),
    *("top_logprobs", "top_p", "truncation", "usage"),
}
# Fields that differ between two responses to the same request.
CHANGING = {"id", "item_id", "call_id", "created_at", "completed_at"}
LAST = {"response.completed", "response.incomplete", "response.failed"}


def request(**fields: Any) -> ResponsesRequest:
    return ResponsesRequest.model_validate_json(orjson.dumps({"model": "m", "input": "Hei", **fields}))


def encoder(**fields: Any) -> ResponsesEncoder:
    return ResponsesEncoder(request(**fields).form(), "resp_0123", "fp_1")


def sent(events: list[Event], **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of a stream as their names and data. Each one must be one piece."""
    coder = encoder(**fields)
    pieces = [bytes(piece) for event in events for piece in coder.encode(event)]
    found = [re.fullmatch(rb"event: (\S+)\ndata: (\{.*\})\n\n", piece) for piece in pieces]
    return [(match[1].decode(), orjson.loads(match[2])) for match in found if match]


def text(*parts: str) -> list[Event]:
    return [TextDelta(0, part, (5,)) for part in parts]


def call(number: int, name: str, *arguments: str) -> list[Event]:
    first, *rest = arguments
    return [ToolCallDelta(0, number, first, name), *(ToolCallDelta(0, number, part) for part in rest)]


def without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [without_ids(item) for item in value]
    if isinstance(value, dict):
        return {name: without_ids(item) for name, item in value.items() if name not in CHANGING}
    return value


def test_text_and_call_have_the_events_of_the_specification() -> None:
    events = [ACCEPTED, *text("Hel", "", "lo"), *call(0, "f", '{"a"', ": 1}"), ChoiceDone(0, "tool_calls"), FINISHED]
    names = [name for name, _ in sent(events)]
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_items_hold_the_whole_text_reasoning_and_arguments() -> None:
    events: list[Event] = [ACCEPTED, ReasoningDelta(0, "Hm"), ReasoningDelta(0, "m"), *text("", "Hei")]
    events += [*call(0, "f", "", "{}"), *call(1, "g", "[]"), ChoiceDone(0, "tool_calls"), FINISHED]
    reasoning, message, first, second = answer_of(encoder(), events)["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hmm"}]
    assert message["content"] == [{"type": "output_text", "text": "Hei", "annotations": [], "logprobs": []}]
    assert [(made["name"], made["arguments"]) for made in (first, second)] == [("f", "{}"), ("g", "[]")]
    assert {item["status"] for item in (reasoning, message, first, second)} == {"completed"}
    assert first["call_id"] != second["call_id"]


pieces = st.text("ab ä€🦌\n", max_size=6)
steps = st.lists(
    st.one_of(
        pieces.map(lambda piece: [TextDelta(0, piece, (5,))]),
        pieces.map(lambda piece: [ReasoningDelta(0, piece)]),
        st.lists(pieces, min_size=1, max_size=3).map(lambda parts: call(0, "f", *parts)),
    ),
    max_size=8,
)
reasons: list[FinishReason] = ["stop", "length", "tool_calls"]


def stream_of(parts: list[list[Event]], reason: FinishReason) -> list[Event]:
    return [ACCEPTED, *(event for part in parts for event in part), ChoiceDone(0, reason), FINISHED]


@given(steps, st.sampled_from(reasons))
def test_stream_is_in_order_and_folds_to_the_plain_response(parts: list[list[Event]], reason: FinishReason) -> None:
    events = stream_of(parts, reason)
    stream = sent(events)
    assert without_ids([data for _, data in stream]) == without_ids(chunks_of(encoder(), events))
    assert [name for name, _ in stream] == [data["type"] for _, data in stream]
    assert [data["sequence_number"] for _, data in stream] == list(range(len(stream)))
    assert [name for name, _ in stream if name in LAST] == [stream[-1][0]]
    last = stream[-1][1]["response"]
    assert without_ids(last) == without_ids(answer_of(encoder(), events))
    ResponseObject.model_validate_json(orjson.dumps(last))
    assert set(last) == FIELDS
    opened = [data["output_index"] for name, data in stream if name == "response.output_item.added"]
    closed = [data["output_index"] for name, data in stream if name == "response.output_item.done"]
    assert opened == closed == list(range(len(last["output"])))
    assert [data["item"] for name, data in stream if name == "response.output_item.done"] == last["output"]
    spoken = "".join(data["delta"] for name, data in stream if name == "response.output_text.delta")
    assert spoken == "".join(event.text for part in parts for event in part if isinstance(event, TextDelta))


@given(steps, st.sampled_from(reasons))
def test_openai_package_reads_every_stream(parts: list[list[Event]], reason: FinishReason) -> None:
    coder = encoder(stream=True)
    events = stream_of(parts, reason)
    body = b"".join(piece for event in events for piece in coder.encode(event)) + coder.end

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(api_key="k", base_url="http://tokka/v1", http_client=http)
    with client.responses.stream(model="m", input="Hei") as stream:
        read = list(stream)
        assert read[-1].type == ("response.incomplete" if reason == "length" else "response.completed")
        if reason != "length":
            spoken = [event.text for part in parts for event in part if isinstance(event, TextDelta)]
            assert stream.get_final_response().output_text == "".join(spoken)


def test_cut_response_is_incomplete_and_so_is_its_last_item() -> None:
    events = [ACCEPTED, *text("a"), *call(0, "f", '{"a'), ChoiceDone(0, "length"), FINISHED]
    name, data = sent(events)[-1]
    assert name == "response.incomplete"
    response = data["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_silent_model_sends_an_empty_message() -> None:
    answer = answer_of(encoder(), [ACCEPTED, TextDelta(0, "", (5,)), ChoiceDone(0, "stop"), FINISHED])
    assert [item["content"][0]["text"] for item in answer["output"]] == [""]


def test_usage_has_the_names_of_the_responses_api() -> None:
    assert answer_of(encoder(), [ACCEPTED, *text("a"), ChoiceDone(0, "stop"), FINISHED])["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 8,
    }


def test_error_in_a_stream_is_nested_and_flat_then_failed() -> None:
    coder = encoder()
    before = [piece for event in [ACCEPTED, *text("a")] for piece in coder.encode(event)]
    found = [piece.decode().split("\ndata: ") for piece in coder.fail(EngineDied("It died."))]
    (first, error), (second, failed) = [(name, orjson.loads(data)) for name, data in found]
    assert (first, second) == ("event: error", "event: response.failed")
    nested = {"type": "server_error", "code": "engine_error", "message": "It died.", "param": None}
    assert error["error"] == nested
    assert (error["code"], error["message"], error["param"]) == ("engine_error", "It died.", None)
    assert [error["sequence_number"], failed["sequence_number"]] == [len(before), len(before) + 1]
    response = failed["response"]
    ResponseObject.model_validate_json(orjson.dumps(response))
    assert response["status"] == "failed"
    assert response["error"] == {"code": "engine_error", "message": "It died."}
    assert [item["status"] for item in response["output"]] == ["incomplete"]


def test_logprobs_belong_to_the_text_and_not_to_reasoning() -> None:
    token = TokenLogprob(7, "a", b"a", -0.5, (TokenLogprob(8, "b", b"b", -1.5),))
    events: list[Event] = [ACCEPTED, ReasoningDelta(0, "hm"), TextDelta(0, "", (7,), (token,))]
    events += [TextDelta(0, "a", (7,), (token,)), ChoiceDone(0, "stop"), FINISHED]
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    _, message = answer_of(encoder(**fields), events)["output"]
    (entry,) = message["content"][0]["logprobs"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("a", -0.5, [97])
    assert [top["token"] for top in entry["top_logprobs"]] == ["b"]
    deltas = [data for name, data in sent(events, **fields) if name == "response.output_text.delta"]
    assert [len(data["logprobs"]) for data in deltas] == [1]


def test_call_of_a_namespace_has_its_local_name() -> None:
    tool = {"type": "namespace", "name": "crm", "description": "", "tools": [{"type": "function", "name": "find"}]}
    events = [ACCEPTED, *call(0, "crm__find", "{}"), ChoiceDone(0, "tool_calls"), FINISHED]
    answer = answer_of(encoder(tools=[tool]), events)
    (made,) = answer["output"]
    assert (made["namespace"], made["name"]) == ("crm", "find")
    assert [offered["name"] for offered in answer["tools"]] == ["crm__find"]


@pytest.mark.parametrize("events", [text("abc"), call(0, "f", "{}"), [ReasoningDelta(0, "abc")]], ids=str)
def test_obfuscation_pads_deltas_when_asked_for(events: list[Event]) -> None:
    fields = {"stream": True, "stream_options": {"include_obfuscation": True}}
    deltas = [data for _, data in sent([ACCEPTED, *events], **fields) if "delta" in data]
    assert all((len(data["delta"]) + len(data["obfuscation"])) % 32 == 0 for data in deltas)
    assert "obfuscation" not in str(sent([ACCEPTED, *events]))

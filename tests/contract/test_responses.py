"""POST /v1/responses against the app: both forms of the answer, refusals, hosted tools, truncation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.contract.bodies import GOOD, RESPONSES, assert_error
from tests.contract.conftest import serving
from tokka.engine.fake import ANSWER, FakeOptions
from tokka.protocol.messages import MAX_MESSAGES
from tokka.protocol.responses.models import CompactedResponse, ResponseObject

FUNCTION = {
    "type": "function",
    "name": "f",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
}
TURNS = [{"role": role, "content": f"{role} {turn}"} for turn in range(6) for role in ("user", "assistant")]


@asynccontextmanager
async def connected(options: FakeOptions) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(options) as server,
        httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka") as client,
    ):
        yield client


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "input": "Hei", **fields}


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    found = [event.split("\n") for event in events]
    read: list[dict[str, Any]] = [json.loads(data.removeprefix("data: ")) for _, data in found]
    assert [name for name, _ in found] == [f"event: {event['type']}" for event in read]
    return read


async def test_stream_ends_with_the_plain_response(client: httpx.AsyncClient) -> None:
    plain = (await client.post(RESPONSES, json=body())).json()
    events = events_of(await client.post(RESPONSES, json=body(stream=True)))
    last = events[-1]["response"]
    ResponseObject.model_validate_json(json.dumps(plain))
    assert plain["output"][0]["content"] == last["output"][0]["content"]
    assert plain["usage"] == last["usage"]
    assert plain["id"] != last["id"]
    assert plain["id"].startswith("resp_")


async def test_cut_response_is_incomplete(client: httpx.AsyncClient) -> None:
    answer = (await client.post(RESPONSES, json=GOOD[RESPONSES])).json()
    assert (answer["status"], answer["usage"]["output_tokens"]) == ("incomplete", 3)
    assert answer["output"][-1]["status"] == "incomplete"


async def test_tool_call_and_its_result_make_a_conversation() -> None:
    async with connected(FakeOptions(tool_calls=True, thoughts=True)) as client:
        first = (await client.post(RESPONSES, json=body(tools=[FUNCTION]))).json()
        assert [item["type"] for item in first["output"]] == ["reasoning", "function_call"]
        call = first["output"][1]
        assert (call["name"], set(json.loads(call["arguments"]))) == ("f", {"a"})
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny"}
        items = [{"role": "user", "content": "Hei"}, *first["output"], result]
        second = (await client.post(RESPONSES, json=body(input=items, tools=[FUNCTION]))).json()
    assert second["output"][-1]["type"] == "message"
    assert second["status"] == "completed"


async def test_hosted_tools_are_named_in_a_header(client: httpx.AsyncClient) -> None:
    hosted = [{"type": "web_search"}, {"type": "custom", "name": "patch"}, {"type": "bad name\r\n"}]
    answer = await client.post(RESPONSES, json=body(tools=[*hosted, FUNCTION]))
    assert answer.status_code == 200
    assert answer.headers["x-tokka-ignored-tools"] == "web_search, custom:patch"
    assert [tool["name"] for tool in answer.json()["tools"]] == ["f"]


async def test_choice_of_a_hosted_tool_is_refused(client: httpx.AsyncClient) -> None:
    fields = {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}
    answer = await client.post(RESPONSES, json=body(**fields))
    assert_error(answer, 400, "tool_choice.type", "unsupported_parameter")


@pytest.mark.parametrize(("truncation", "status"), [(None, 400), ("disabled", 400), ("auto", 200)])
async def test_truncation_leaves_out_the_oldest_turns(truncation: str | None, status: int) -> None:
    items = [{"role": "system", "content": "Rules."}, *TURNS, {"role": "user", "content": "Last"}]
    async with connected(FakeOptions(max_model_len=120)) as client:
        answer = await client.post(RESPONSES, json=body(input=items, truncation=truncation, max_output_tokens=4))
    assert answer.status_code == status
    if status == 200:
        used = answer.json()["usage"]["input_tokens"]
        assert len("system: Rules.\nuser: Last\n") <= used <= 116
    else:
        assert_error(answer, 400, "input", "context_length_exceeded")


async def test_truncation_keeps_the_last_turn_whole() -> None:
    async with connected(FakeOptions(max_model_len=64)) as client:
        items = [*TURNS, {"role": "user", "content": "x" * 100}]
        answer = await client.post(RESPONSES, json=body(input=items, truncation="auto"))
    assert_error(answer, 400, "input", "context_length_exceeded")


@pytest.mark.parametrize("stream", [True, False])
async def test_death_of_the_engine_fails_the_response(stream: bool) -> None:
    async with connected(FakeOptions(die_on="die")) as client:
        answer = await client.post(RESPONSES, json=body(input="die", stream=stream))
    if not stream:
        assert answer.status_code == 500
        return
    *_, error, failed = events_of(answer)
    assert (error["type"], error["code"], error["error"]["code"]) == ("error", "engine_error", "engine_error")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")


async def test_compaction_stands_for_the_conversation(client: httpx.AsyncClient) -> None:
    made = (await client.post(f"{RESPONSES}/compact", json={"model": "fake", "input": TURNS})).json()
    CompactedResponse.model_validate_json(json.dumps(made))
    items = [*made["output"], {"role": "user", "content": "Go on."}]
    counted = (await client.post(f"{RESPONSES}/input_tokens", json=body(input=items))).json()["input_tokens"]
    told = f"user: Summary of the conversation so far:\n\n{ANSWER}\nuser: Go on.\n"
    assert counted == len(told.encode())


async def test_largest_conversation_is_compacted(client: httpx.AsyncClient) -> None:
    items = [{"role": "user", "content": ""}] * MAX_MESSAGES
    answer = await client.post(f"{RESPONSES}/compact", json={"model": "fake", "input": items})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_compaction_of_another_server_is_refused(client: httpx.AsyncClient) -> None:
    for content in ("gAAAA", "tokka-summary.%"):
        answer = await client.post(RESPONSES, json=body(input=[{"type": "compaction", "encrypted_content": content}]))
        assert_error(answer, 400, "input[0].encrypted_content")
    answer = await client.post(f"{RESPONSES}/compact", json={"input": "x"})
    assert_error(answer, 400, "model")


async def test_response_is_not_stored_without_a_database(client: httpx.AsyncClient) -> None:
    assert (await client.post(RESPONSES, json=body())).json()["store"] is False
    answer = await client.post(RESPONSES, json=body(store=True))
    assert (answer.status_code, answer.json()["error"]["param"]) == (503, "store")


async def test_unknown_conversation_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(RESPONSES, json=body(previous_response_id="resp_1"))
    assert_error(answer, 400, "previous_response_id", "previous_response_not_found")
    answer = await client.post(RESPONSES, json=body(input=[{"type": "item_reference", "id": "msg_1"}]))
    assert_error(answer, 400, "input[0].id")


async def test_input_tokens_equal_the_usage(client: httpx.AsyncClient) -> None:
    fields = body(instructions="Be brief.", input=TURNS)
    counted = (await client.post(f"{RESPONSES}/input_tokens", json=fields)).json()
    used = (await client.post(RESPONSES, json=fields)).json()["usage"]["input_tokens"]
    assert counted == {"object": "response.input_tokens", "input_tokens": used}

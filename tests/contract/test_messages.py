"""/v1/messages over HTTP: keys, headers, errors in Anthropic's form on this path only, models, tools, limits."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.contract.bodies import CHAT, GOOD
from tests.contract.conftest import serving
from tokka.api.http_refusal import HeadersTooLarge, response_of
from tokka.engine.fake import ANSWER, FakeOptions
from tokka.engine.scripted_answer import REASONING
from tokka.protocol.anthropic.models import (
    AnthropicErrorBody,
    AnthropicEvent,
    AnthropicMessageObject,
    AnthropicModel,
    AnthropicModelList,
)

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
USER = {"role": "user", "content": "Hei"}
PROMPT: dict[str, Any] = {"model": "fake", "messages": [USER]}
BODY: dict[str, Any] = {**PROMPT, "max_tokens": 32_000}
TOOL = {
    "name": "now",
    "input_schema": {"type": "object", "properties": {"zone": {"enum": ["UTC"]}}, "required": ["zone"]},
}
VERSION = {"anthropic-version": "2023-06-01"}
AGENT = FakeOptions(tool_calls=True, thoughts=True)


@asynccontextmanager
async def client_of(options: FakeOptions | None = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(options, **settings) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            yield client


async def answer_of(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post(MESSAGES, json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    AnthropicMessageObject.model_validate_json(answer.content)
    message: dict[str, Any] = answer.json()
    return message


def events_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, rest = answer.text.split("\n\n")
    assert rest == ""
    for event in events:
        name, data = event.split("\n")
        AnthropicEvent.model_validate_json(data.removeprefix("data: "))
        read: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {read['type']}"
        yield read


def assert_anthropic_error(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    error = AnthropicErrorBody.model_validate_json(answer.content)
    assert error.error.type == kind
    assert error.request_id == answer.headers["request-id"] == answer.headers["x-request-id"]
    return error.error.message


async def test_message_has_text_usage_and_request_id(client: httpx.AsyncClient) -> None:
    answer = await client.post(MESSAGES, json=BODY, headers=VERSION)
    message = answer.json()
    assert message["content"] == [{"type": "text", "text": ANSWER, "citations": []}]
    assert (message["stop_reason"], message["role"], message["model"]) == ("end_turn", "assistant", "fake")
    assert message["usage"]["input_tokens"] == len("user: Hei\n")
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_thinking_budget_without_a_parser_has_no_effect(client: httpx.AsyncClient) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert (await answer_of(client, thinking=thinking))["content"] == (await answer_of(client))["content"]


async def test_stream_ends_with_message_stop(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{MESSAGES}?beta=true", json={**BODY, "stream": True})
    events = list(events_of(answer))
    assert [event["type"] for event in events[:3]] == ["message_start", "ping", "content_block_start"]
    assert events[-1] == {"type": "message_stop"}
    texts = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(texts) == ANSWER


async def test_tool_call_and_result_make_a_loop() -> None:
    async with client_of(AGENT) as client:
        called = await answer_of(client, tools=[TOOL])
        thinking, use = called["content"]
        assert (thinking["thinking"], bool(thinking["signature"])) == (REASONING, True)
        assert (use["name"], use["input"], called["stop_reason"]) == ("now", {"zone": "UTC"}, "tool_use")
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": "Failed", "is_error": True}
        turns = [USER, {"role": "assistant", "content": called["content"]}, {"role": "user", "content": [result]}]
        ended = await answer_of(client, tools=[TOOL], messages=turns)
        assert [block["type"] for block in ended["content"]] == ["thinking", "text"]
        assert ended["stop_reason"] == "end_turn"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "now"}])
async def test_demanded_tool_is_called(choice: dict[str, Any]) -> None:
    async with client_of(AGENT) as client:
        answer = await answer_of(client, tools=[TOOL], tool_choice=choice)
    assert answer["content"][-1]["input"] == {"zone": "UTC"}
    assert answer["stop_reason"] == "tool_use"


async def test_format_makes_the_text_json() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    async with client_of(FakeOptions(tool_calls=True)) as client:
        answer = await answer_of(client, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert isinstance(json.loads(answer["content"][0]["text"])["a"], int)


async def test_stop_sequence_is_reported(client: httpx.AsyncClient) -> None:
    answer = await answer_of(client, stop_sequences=["engine", "never"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "engine")
    assert answer["content"][0]["text"] == ANSWER[: ANSWER.index("engine")]


async def test_max_tokens_is_clamped_to_the_rest_of_the_context() -> None:
    async with client_of(FakeOptions(max_model_len=40)) as client:
        answer = await answer_of(client)
        assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 40 - len("user: Hei\n"))
        assert (await answer_of(client, max_tokens=5))["usage"]["output_tokens"] == 5


async def test_long_prompt_gets_the_words_that_claude_code_reads() -> None:
    async with client_of(FakeOptions(max_model_len=40)) as client:
        answer = await client.post(MESSAGES, json={**BODY, "messages": [{"role": "user", "content": "a" * 33}]})
    message = assert_anthropic_error(answer, 400, "invalid_request_error")
    match = re.search(r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)", message)
    assert match is not None
    assert match.groups() == ("40", "39")


async def test_count_tokens_counts_the_prompt_of_a_message(client: httpx.AsyncClient) -> None:
    fields = {"system": "Be brief.", "tools": [TOOL]}
    counted = await client.post(COUNT, json={**PROMPT, **fields})
    assert counted.json() == {"input_tokens": (await answer_of(client, **fields))["usage"]["input_tokens"]}
    assert counted.headers["request-id"]


async def test_image_is_refused_until_a_model_takes_it(client: httpx.AsyncClient) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    messages = [{"role": "user", "content": [image]}]
    for path in (MESSAGES, COUNT):
        answer = await client.post(path, json={**(BODY if path == MESSAGES else PROMPT), "messages": messages})
        assert "messages[0].content[0]" in assert_anthropic_error(answer, 400, "invalid_request_error")
    async with client_of(FakeOptions(images=True)) as viewer:
        assert (await answer_of(viewer, messages=messages))["stop_reason"] == "end_turn"


async def test_server_tool_is_named_in_a_header(client: httpx.AsyncClient) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}, TOOL]
    answer = await client.post(MESSAGES, json={**BODY, "tools": tools})
    assert answer.status_code == 200
    assert answer.headers["x-tokka-ignored-tools"] == "web_search_20250305"


KEY = "tk-" + "a" * 43


@pytest.mark.parametrize("headers", [{"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}])
async def test_key_is_taken_from_either_header(headers: dict[str, str]) -> None:
    async with client_of(api_key=[KEY]) as client:
        for path, body in ((MESSAGES, BODY), (COUNT, PROMPT)):
            assert (await client.post(path, json=body, headers=headers)).status_code == 200
        assert (await client.get("/v1/models", headers={**headers, **VERSION})).status_code == 200


async def test_wrong_key_is_an_authentication_error() -> None:
    async with client_of(api_key=[KEY]) as client:
        for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong", "x-api-key": KEY}):
            answer = await client.post(MESSAGES, json=BODY, headers=headers)
            assert_anthropic_error(answer, 401, "authentication_error")
        # Other paths know no other header.
        assert (await client.post(CHAT, json=GOOD[CHAT], headers={"x-api-key": KEY})).status_code == 401


async def test_errors_of_every_status_are_in_anthropics_form(client: httpx.AsyncClient) -> None:
    json_type = {"content-type": "application/json"}
    large = b'{"model": "' + b"a" * (2 << 20) + b'"}'
    for answer, status, kind in (
        (await client.post(MESSAGES, content=b"{", headers=json_type), 400, "invalid_request_error"),
        (await client.post(MESSAGES, json={**BODY, "model": "other"}), 404, "not_found_error"),
        (await client.post("/v1/messages/batches", json={}), 404, "not_found_error"),
        (await client.get(MESSAGES), 405, "invalid_request_error"),
        (await client.post(MESSAGES, content=large, headers=json_type), 413, "request_too_large"),
        (await client.post(MESSAGES, content=b"a=1"), 415, "invalid_request_error"),
    ):
        assert_anthropic_error(answer, status, kind)


async def test_draining_server_is_overloaded_with_a_time_to_retry() -> None:
    async with serving() as server:
        server.drain()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka") as client:
            answer = await client.post(MESSAGES, json=BODY)
    assert_anthropic_error(answer, 503, "overloaded_error")
    assert 1 <= int(answer.headers["retry-after"]) <= 120


async def test_engine_error_ends_the_stream() -> None:
    async with client_of(FakeOptions(die_on="Hei")) as client:
        answer = await client.post(MESSAGES, json={**BODY, "stream": True})
    events = list(events_of(answer))
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"


async def test_thread_is_refused_by_a_parser_process_too(client: httpx.AsyncClient) -> None:
    body = {**BODY, "thread": {"type": "create"}}
    for content in (json.dumps(body), json.dumps(body) + " " * (300 << 10)):
        answer = await client.post(MESSAGES, content=content, headers={"content-type": "application/json"})
        assert_anthropic_error(answer, 400, "invalid_request_error")
        assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}


def test_refusal_before_a_request_is_in_anthropics_form() -> None:
    head, body = response_of(HeadersTooLarge(100), b"/v1/messages?beta=true").split(b"\r\n\r\n")
    error = AnthropicErrorBody.model_validate_json(body)
    assert error.error.type == "request_too_large"
    assert f"\r\nrequest-id: {error.request_id}\r\n".encode() in head + b"\r\n"


async def test_other_paths_keep_the_errors_of_openai(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={**GOOD[CHAT], "model": "other"}, headers=VERSION)
    assert set(answer.json()) == {"error"}
    assert "request-id" not in answer.headers


async def test_models_have_anthropics_form_when_asked(client: httpx.AsyncClient) -> None:
    models = await client.get("/v1/models", headers=VERSION)
    AnthropicModelList.model_validate_json(models.content, strict=True)
    assert models.json()["first_id"] == models.json()["data"][0]["id"] == "fake"
    model = await client.get("/v1/models/fake", headers=VERSION)
    AnthropicModel.model_validate_json(model.content, strict=True)
    assert model.json() == models.json()["data"][0]
    assert (await client.get("/v1/models")).json()["object"] == "list"

"""Requests that other servers' clients send: unknown fields, a byte order mark, fields of `/tokenize`."""

from __future__ import annotations

import codecs
import json
from typing import Any

import httpx
import pytest

from tests.contract.bodies import ASSISTANT, CALL, CHAT, COMPLETIONS, GOOD, TOKENIZE, USER, assert_error, post
from tests.contract.conftest import serving
from tests.contract.tools import BODY, answers
from tokka.engine.fake import FakeOptions

HEADER = "x-tokka-ignored-fields"
OLLAMA = {"num_ctx": 4096, "keep_alive": "5m"}


def counted(metrics: str, place: str) -> float:
    line = f'tokka_ignored_fields_total{{place="{place}"}} '
    return next(float(text.removeprefix(line)) for text in metrics.splitlines() if text.startswith(line))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_unknown_fields_are_served_named_and_counted(path: str) -> None:
    async with serving(unknown_fields="ignore", metrics_open=True) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            expected = (await client.post(path, json=GOOD[path])).json()["choices"]
            for fields in ({}, {"stream": True}):
                answer = await client.post(path, json={**GOOD[path], **OLLAMA, **fields})
                assert answer.status_code == 200, answer.text
                assert answer.headers[HEADER] == "num_ctx, keep_alive"
            answer = await client.post(path, json={**GOOD[path], **OLLAMA, "bad\nname": 1, "ä": 2})
            assert (answer.json()["choices"], answer.headers[HEADER]) == (expected, "num_ctx, keep_alive")
            # Large enough for a parser process.
            large = json.dumps({**GOOD[path], **OLLAMA}).encode() + b" " * (300 << 10)
            assert (await post(client, path, large)).headers[HEADER] == "num_ctx, keep_alive"
            assert_error(await post(client, path, json.dumps({**GOOD[path], **OLLAMA, "n": 0})), 400, "n")
            assert HEADER not in (await client.post(path, json=GOOD[path])).headers
            assert counted((await client.get("/metrics")).text, "request") == 10


async def test_unknown_fields_are_refused_by_default(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={**GOOD[CHAT], "guided_json": {}})
    assert_error(answer, 400, "guided_json")
    assert "Did you mean 'structured_outputs'?" in answer.json()["error"]["message"]


async def test_unknown_fields_of_messages_are_counted() -> None:
    messages = [USER, {**ASSISTANT, "tool_calls": [{**CALL, "index": 0}], "provider_specific_fields": {"a": 1}}]
    messages.append({"role": "tool", "tool_call_id": "c", "content": [], "is_error": False})
    async with serving(metrics_open=True) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            answer = await client.post(CHAT, json={**GOOD[CHAT], "messages": messages})
            assert (answer.status_code, HEADER in answer.headers) == (200, False)
            assert counted((await client.get("/metrics")).text, "message") == 2


async def test_an_empty_answer_beside_tools_is_the_same_streamed() -> None:
    plain, chunks = await answers(FakeOptions(answer=""))
    contents = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    assert plain["choices"][0]["message"]["content"] == ""
    assert contents == [None, ""]


@pytest.mark.parametrize("name", ["read", "Read", "mcp.read file"])
async def test_a_call_of_a_function_not_offered_is_a_call(name: str) -> None:
    text = f'<tool_call>\n{{"name": "{name}", "arguments": {{"path": "a"}}}}\n</tool_call>'
    plain, chunks = await answers(FakeOptions(answer=text))
    message = plain["choices"][0]["message"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]] == [
        (name, '{"path": "a"}')
    ]
    assert (message["content"], plain["choices"][0]["finish_reason"]) == (None, "tool_calls")
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    # The client reports the mistake to the model in its next request.
    async with serving() as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "no such tool"}
            answer = await client.post(CHAT, json={**BODY, "messages": [USER, message, result]})
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, TOKENIZE])
async def test_a_byte_order_mark_before_a_body_is_skipped(client: httpx.AsyncClient, path: str) -> None:
    answer = await post(client, path, codecs.BOM_UTF8 + json.dumps(GOOD[path]).encode())
    assert answer.status_code == 200, answer.text


async def test_tokenize_takes_the_fields_of_vllm(client: httpx.AsyncClient) -> None:
    plain = (await client.post(TOKENIZE, json={"prompt": "Hei"})).json()
    assert plain["token_strs"] is None
    fields = {"add_special_tokens": False, "return_token_strs": True}
    answer = (await client.post(TOKENIZE, json={"prompt": "Hei", **fields})).json()
    assert (answer["tokens"], answer["token_strs"]) == (plain["tokens"], ["H", "e", "i"])
    extras: list[dict[str, Any]] = [{}, {"tools": None}, {"tools": []}, {"tools": BODY["tools"]}]
    for extra in extras:
        answer = (await client.post(TOKENIZE, json={"messages": [USER], **extra})).json()
        assert answer["count"] == len(answer["tokens"]) > 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a", "tools": BODY["tools"]}, "tools"),
        (
            {"messages": [USER], "tools": [*BODY["tools"], BODY["tools"][0]]},
            f"tools[{len(BODY['tools'])}].function.name",
        ),
        ({"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
    ],
)
async def test_tokenize_refuses_tools_it_cannot_use(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    assert_error(await client.post(TOKENIZE, json=fields), 400, param)


@pytest.mark.parametrize("name", ["reasoning_effort", "verbosity"])
@pytest.mark.parametrize("value", ["low", "medium", "high"])
async def test_effort_and_verbosity_are_accepted(client: httpx.AsyncClient, name: str, value: str) -> None:
    assert (await client.post(CHAT, json={**GOOD[CHAT], name: value})).status_code == 200
    assert_error(await client.post(CHAT, json={**GOOD[CHAT], name: "lowest"}), 400, name)

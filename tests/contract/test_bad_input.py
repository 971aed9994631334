"""Bad input: each error has the right status and names the field, and the server keeps serving."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.contract.bodies import (
    ASSISTANT,
    CALL,
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    GOOD,
    MAX_MESSAGE_BYTES,
    RESPONSES,
    TOKENIZE,
    USER,
    assert_error,
    assert_serves,
    case_id,
    post,
)
from tests.contract.conftest import serving


def raw(path: str, name: str, text: str) -> str:
    """Return a valid body with one field replaced by this JSON text."""
    fields = {key: json.dumps(value) for key, value in GOOD[path].items()} | {name: text}
    return "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in fields.items()) + "}"


# -- one wrong field --------------------------------------------------------------------------------------------

# (field, its value as JSON, the error's param; None: the field itself)
EITHER: list[tuple[str, str, str | None]] = [
    ("model", "null", None),
    ("model", "5", None),
    ("model", '""', None),
    ("model", "[]", None),
    ("model", json.dumps("m" * 513), None),
    ("max_tokens", '"5"', None),
    ("max_tokens", "-1", None),
    ("max_tokens", "1.5", None),
    ("max_tokens", "true", None),
    ("max_tokens", "NaN", None),
    ("max_tokens", str(2**63), None),
    ("max_tokens", "9" * 4000, None),
    ("min_tokens", "-1", None),
    ("min_tokens", "4", None),
    ("n", "0", None),
    ("n", "129", None),
    ("n", '"1"', None),
    ("temperature", "NaN", None),
    ("temperature", "Infinity", None),
    ("temperature", "1e400", None),
    ("temperature", '"hot"', None),
    ("temperature", "true", None),
    ("temperature", "2.1", None),
    ("temperature", "-0.1", None),
    ("top_p", "1.1", None),
    ("top_p", "{}", None),
    ("top_k", "-2", None),
    ("min_p", "-1", None),
    ("presence_penalty", "2.1", None),
    ("frequency_penalty", "-2.1", None),
    ("repetition_penalty", "0", None),
    ("seed", str(2**70), None),
    ("seed", "1.5", None),
    ("timeout", "0", None),
    ("timeout", "1e9", None),
    ("priority", str(2**31), None),
    ("truncate_prompt_tokens", "0", None),
    ("stream", '"true"', None),
    ("stream", "1", None),
    ("stream_options", "true", None),
    ("stream_options", '{"include_usage": true}', None),
    ("stream_options", '{"include_usage": 1}', "stream_options.include_usage"),
    ("stream_options", '{"unknown": 1}', "stream_options.unknown"),
    ("stop", "5", None),
    ("stop", '""', None),
    ("stop", '["a", ""]', "stop[1]"),
    ("stop", '["a", 5]', "stop[1]"),
    ("stop", '["a", null]', "stop[1]"),
    ("stop", json.dumps(["x"] * 17), None),
    ("stop", json.dumps("x" * 257), None),
    ("stop", json.dumps(["x" * 257]), "stop[0]"),
    ("stop_token_ids", '["a"]', "stop_token_ids[0]"),
    ("stop_token_ids", "[1, -1]", "stop_token_ids[1]"),
    ("stop_token_ids", "[999]", None),
    ("stop_token_ids", json.dumps([1] * 129), None),
    ("logit_bias", "[]", None),
    ("logit_bias", '{"1": 101}', "logit_bias.1"),
    ("logit_bias", '{"1": NaN}', "logit_bias.1"),
    ("logit_bias", '{"x": 1}', "logit_bias.x"),
    ("logit_bias", '{"-1": 1}', "logit_bias.-1"),
    ("logit_bias", '{"257": 1}', None),
    ("logit_bias", '{"9999999999": 1}', None),
    ("allowed_token_ids", "[]", None),
    ("allowed_token_ids", "[257]", None),
    ("bad_words", '["a", ""]', "bad_words[1]"),
    ("cache_salt", '"a b"', None),
    ("unknown", "null", None),
    ("unknown", '{"deep": [1, {"a": 2}]}', None),
    ("__proto__", "{}", None),
    ("x" * 5000, "1", "x" * 200),
]
CHAT_FIELDS: list[tuple[str, str, str | None]] = [
    ("messages", "null", None),
    ("messages", "[]", None),
    ("messages", "{}", None),
    ("messages", '"Hei"', None),
    ("messages", '["Hei"]', "messages[0]"),
    ("messages", "[null]", "messages[0]"),
    ("messages", "[{}]", "messages[0].role"),
    ("messages", '[{"role": "user"}]', "messages[0].content"),
    ("messages", '[{"role": "robot", "content": "a"}]', "messages[0].role"),
    ("messages", '[{"role": null, "content": "a"}]', "messages[0].role"),
    ("messages", '[{"role": "user", "content": null}]', "messages[0].content"),
    ("messages", '[{"role": "user", "content": 5}]', "messages[0].content"),
    ("messages", '[{"role": "user", "content": []}]', "messages[0].content"),
    ("messages", json.dumps([USER, USER, {"role": "user", "content": True}]), "messages[2].content"),
    ("messages", json.dumps([{**USER, "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
    ("messages", json.dumps([{**USER, "content": [{"type": "text", "text": 5}]}]), "messages[0].content[0].text"),
    ("messages", json.dumps([{**USER, "content": [{"text": "a"}]}]), "messages[0].content[0].type"),
    ("messages", json.dumps([{**USER, "name": "a b"}]), "messages[0].name"),
    ("messages", '[{"role": "assistant", "content": 5}]', "messages[0].content"),
    ("messages", '[{"role": "tool", "content": "a"}]', "messages[0].tool_call_id"),
    ("messages", json.dumps([{**ASSISTANT, "tool_calls": {}}]), "messages[0].tool_calls"),
    ("messages", json.dumps([{**ASSISTANT, "tool_calls": [{**CALL, "id": ""}]}]), "messages[0].tool_calls[0].id"),
    (
        "messages",
        json.dumps([{**ASSISTANT, "tool_calls": [{**CALL, "function": {"name": "f"}}]}]),
        "messages[0].tool_calls[0].function.arguments",
    ),
    ("max_tokens", "0", None),
    ("max_completion_tokens", "0", None),
    ("max_completion_tokens", '"5"', None),
    ("logprobs", "5", None),
    ("top_logprobs", "3", None),
    ("top_logprobs", "21", None),
    ("response_format", '{"type": "xml"}', "response_format.type"),
    ("response_format", "5", None),
    ("metadata", '{"a": 1}', "metadata.a"),
    ("modalities", '["audio"]', "modalities[0]"),
    ("service_tier", '"gold"', None),
    ("continue_final_message", "true", None),
    ("chat_template_kwargs", '{"messages": "a"}', None),
    ("chat_template_kwargs", '{"x": [NaN]}', "chat_template_kwargs.x"),
    ("prompt", '"Hei"', None),
]
UNSUPPORTED: list[tuple[str, str, str | None]] = [
    ("structured_outputs", '{"regex": "a"}', "structured_outputs.regex"),
    ("functions", "[]", None),
    ("function_call", '"none"', None),
    ("audio", "{}", None),
    ("response_format", '{"type": "json_object"}', "response_format.type"),
    (
        "response_format",
        '{"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}',
        "response_format.json_schema.schema",
    ),
    (
        "messages",
        json.dumps([{**USER, "content": [{"type": "image_url", "image_url": {"url": "https://a"}}]}]),
        "messages[0].content[0].type",
    ),
]
COMPLETION_FIELDS: list[tuple[str, str, str | None]] = [
    ("prompt", "5", None),
    ("prompt", "true", None),
    ("prompt", "{}", None),
    ("prompt", "[]", None),
    ("prompt", '["a", 5]', "prompt[1]"),
    ("prompt", '["a", [1]]', "prompt[1]"),
    ("prompt", '["a", null]', "prompt[1]"),
    ("prompt", '[1, "a"]', "prompt[1]"),
    ("prompt", "[1, true]", "prompt[1]"),
    ("prompt", "[1, -1]", "prompt[1]"),
    ("prompt", "[1, 1.5]", "prompt[1]"),
    ("prompt", "[[1], []]", "prompt[1]"),
    ("prompt", '[[1], [1, "a"]]', "prompt[1][1]"),
    ("prompt", f"[{2**70}]", "prompt[0]"),
    ("prompt", "[257]", None),
    ("prompt", json.dumps(["a"] * 1025), None),
    ("best_of", "0", None),
    ("best_of", "21", None),
    ("logprobs", "true", None),
    ("logprobs", "6", None),
    ("messages", "[]", None),
]
TOKENIZE_FIELDS: list[tuple[str, str, str | None]] = [
    ("prompt", "5", None),
    ("prompt", "null", None),
    ("messages", json.dumps([USER]), "prompt"),
    ("messages", "[]", None),
    ("model", "5", None),
    ("unknown", "1", None),
]
DETOKENIZE_FIELDS: list[tuple[str, str, str | None]] = [
    ("tokens", "null", None),
    ("tokens", '"a"', None),
    ("tokens", '["a"]', "tokens[0]"),
    ("tokens", "[1, -1]", "tokens[1]"),
    ("tokens", "[257]", None),
    ("tokens", "[1, true]", "tokens[1]"),
]
FIELD_CASES = [
    *((CHAT, *case) for case in [*EITHER, *CHAT_FIELDS]),
    *((COMPLETIONS, *case) for case in [*EITHER, *COMPLETION_FIELDS]),
    *((TOKENIZE, *case) for case in TOKENIZE_FIELDS),
    *((DETOKENIZE, *case) for case in DETOKENIZE_FIELDS),
]


@pytest.mark.parametrize(("path", "name", "value", "param"), FIELD_CASES, ids=case_id)
async def test_a_wrong_field_is_named(
    client: httpx.AsyncClient, path: str, name: str, value: str, param: str | None
) -> None:
    assert_error(await post(client, path, raw(path, name, value)), 400, param or name)
    await assert_serves(client, path)


@pytest.mark.parametrize(("name", "value", "param"), UNSUPPORTED, ids=case_id)
async def test_unsupported_field_is_refused_with_its_name(
    client: httpx.AsyncClient, name: str, value: str, param: str | None
) -> None:
    answer = await post(client, CHAT, raw(CHAT, name, value))
    assert_error(answer, 400, param or name, "unsupported_parameter")
    await assert_serves(client)


@pytest.mark.parametrize(
    ("path", "name"),
    [(CHAT, "model"), (CHAT, "messages"), (COMPLETIONS, "model"), (COMPLETIONS, "prompt"), (DETOKENIZE, "tokens")],
)
async def test_a_missing_field_is_named(client: httpx.AsyncClient, path: str, name: str) -> None:
    body = {key: value for key, value in GOOD[path].items() if key != name}
    answer = await client.post(path, json=body)
    assert_error(answer, 400, name)
    assert "Missing" in answer.json()["error"]["message"]


# -- fields that cannot be combined -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": [ASSISTANT], "continue_final_message": True, "add_generation_prompt": True}, None),
        (COMPLETIONS, {"n": 2, "best_of": 1}, "best_of"),
        (COMPLETIONS, {"best_of": 2, "stream": True}, "best_of"),
        (COMPLETIONS, {"prompt": ["a"] * 100, "n": 11}, "n"),
        (COMPLETIONS, {"prompt": ["a"] * 600, "best_of": 2}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        (COMPLETIONS, {"prompt": ["a"] * 65, "logit_bias": {str(i): 1 for i in range(1010)}}, "logit_bias"),
        (COMPLETIONS, {"prompt": ["a"] * 9, "allowed_token_ids": [1] * 8192}, "allowed_token_ids"),
        (CHAT, {"n": 128, "allowed_token_ids": [1] * 513}, "allowed_token_ids"),
        (COMPLETIONS, {"prompt": ["a"] * 1000, "stop_token_ids": [1] * 66}, "stop_token_ids"),
        (COMPLETIONS, {"prompt": ["a"] * 1000, "bad_words": ["a"] * 66}, "bad_words"),
    ],
    ids=case_id,
)
async def test_fields_that_exclude_each_other_are_named(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str | None
) -> None:
    answer = await client.post(path, json={**GOOD[path], **fields})
    assert_error(answer, 400, param or "continue_final_message")
    await assert_serves(client, path)


@pytest.mark.parametrize(("path", "param"), [(CHAT, "messages"), (COMPLETIONS, "prompt")])
async def test_more_than_the_context_is_refused_with_its_three_numbers(
    client: httpx.AsyncClient, path: str, param: str
) -> None:
    answer = await client.post(path, json={**GOOD[path], "max_tokens": 4096})
    assert_error(answer, 400, param, "context_length_exceeded")
    prompt_tokens = len("user: Hei\n") if path == CHAT else len("Hei")
    for number in (4096, prompt_tokens, 4096 + prompt_tokens):
        assert str(number) in answer.json()["error"]["message"]
    await assert_serves(client, path)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stream_that_cannot_begin_is_a_plain_error(client: httpx.AsyncClient, stream: bool) -> None:
    answer = await client.post(CHAT, json={**GOOD[CHAT], "stream": stream, "max_tokens": 4096})
    assert_error(answer, 400, "messages", "context_length_exceeded")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, TOKENIZE, DETOKENIZE])
@pytest.mark.parametrize("name", ["other", "FAKE", "fake ", "x" * 512, "../fake", "f\u0000ake"], ids=case_id)
async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient, path: str, name: str) -> None:
    answer = await client.post(path, json={**GOOD[path], "model": name})
    assert_error(answer, 404, "model", "model_not_found")
    await assert_serves(client, path)


# -- bodies that are not JSON objects ---------------------------------------------------------------------------

GOOD_CHAT = json.dumps(GOOD[CHAT])
NO_JSON: list[bytes] = [
    b"",
    b" ",
    b"{",
    b"}",
    b"nonsense",
    b"{'model': 'fake'}",
    b'{"model": "fake",}',
    b"{,}",
    GOOD_CHAT[:-1].encode(),
    (GOOD_CHAT + "}").encode(),
    (GOOD_CHAT * 2).encode(),
    b'{"model": "\xff\xfe"}',
    b'{"model": "\xed\xa0\x80"}',
    b'{"model": "\\ud800"}',
    b'{"model": "\\x"}',
    b'{"model": "a\nb"}',
    b'{"model": +1}',
    b'{"model": 01}',
    b'{"model": .5}',
    b'{"n": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    raw(CHAT, "metadata", '{"a":' * 300 + "1" + "}" * 300).encode(),
    GOOD_CHAT.encode("utf-16"),
    b"\xef\xbb\xbf" * 2 + GOOD_CHAT.encode(),
    b"\x00" * 100,
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, TOKENIZE, DETOKENIZE])
@pytest.mark.parametrize("content", NO_JSON, ids=lambda content: repr(content[:24]))
async def test_invalid_json_is_refused(client: httpx.AsyncClient, path: str, content: bytes) -> None:
    assert_error(await post(client, path, content), 400, None)
    await assert_serves(client, path)


@pytest.mark.parametrize("content", [b"null", b"5", b'"text"', b"[]", b"true", b"NaN", b"[{}]"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, TOKENIZE, DETOKENIZE])
async def test_json_that_is_no_object_is_refused(client: httpx.AsyncClient, path: str, content: bytes) -> None:
    assert_error(await post(client, path, content), 400, None)
    await assert_serves(client, path)


async def test_of_a_field_given_twice_the_last_one_counts(client: httpx.AsyncClient) -> None:
    assert_error(await post(client, CHAT, raw(CHAT, "n", '1, "n": 0')), 400, "n")
    assert (await post(client, CHAT, raw(CHAT, "n", '0, "n": 1'))).status_code == 200


async def test_huge_message_of_an_error_is_cut(client: httpx.AsyncClient) -> None:
    schema = {"name": "a", "schema": {"$ref": "x" * 50_000}}
    form = json.dumps({"type": "json_schema", "json_schema": schema})
    answer = await post(client, CHAT, raw(CHAT, "response_format", form))
    assert_error(answer, 400, "response_format.json_schema.schema.$ref")
    assert answer.json()["error"]["message"].endswith("x…")


@pytest.mark.parametrize("name", ["logit_bias", "metadata", "chat_template_kwargs"])
async def test_a_client_s_own_huge_key_is_cut(client: httpx.AsyncClient, name: str) -> None:
    answer = await post(client, CHAT, raw(CHAT, name, json.dumps({"ä" * 50_000: "x"})))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_value")
    assert error["param"].startswith(name)
    assert len(answer.content) < 2 * MAX_MESSAGE_BYTES


@pytest.mark.parametrize("text", ["\u0000", "\u202e", "\U0001f98c", "<|im_end|>", "{{ 7 * 7 }}", "%s%n", "a\r\nb"])
async def test_strange_text_is_only_text(client: httpx.AsyncClient, text: str) -> None:
    answer = await client.post(CHAT, json={**GOOD[CHAT], "messages": [{"role": "user", "content": text}]})
    assert answer.status_code == 200


# -- paths, methods, media types, sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, TOKENIZE, DETOKENIZE])
@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", ""]
)
async def test_another_media_type_is_refused(client: httpx.AsyncClient, path: str, media_type: str) -> None:
    answer = await client.post(path, content=json.dumps(GOOD[path]), headers={"content-type": media_type})
    assert_error(answer, 415, None, "unsupported_media_type")
    await assert_serves(client, path)


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"])
async def test_json_is_recognised_as_http_writes_it(client: httpx.AsyncClient, media_type: str) -> None:
    answer = await client.post(CHAT, content=GOOD_CHAT, headers={"content-type": media_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "FOO"])
@pytest.mark.parametrize(
    "path", ["/ui", "/v1", "/v1/", "/v1/moderations", "/v1/chat/completions/", "//v1/models", "/ä%00"]
)
async def test_an_unknown_url_is_not_found(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)
    if method == "HEAD":
        assert answer.status_code == 404
    else:
        assert_error(answer, 404, None, "unknown_url")


async def test_a_huge_url_is_not_sent_back(client: httpx.AsyncClient) -> None:
    assert_error(await client.get("/" + "x" * 5000), 404, None, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("DELETE", COMPLETIONS, "POST"),
        ("GET", TOKENIZE, "POST"),
        ("PATCH", DETOKENIZE, "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/fake", "GET"),
        ("POST", "/livez", "GET"),
        ("POST", "/metrics", "GET"),
        ("FOO", "/readyz", "GET"),
        ("OPTIONS", "/v1/responses", "POST"),
    ],
)
async def test_another_method_is_answered_with_the_allowed_ones(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await client.request(method, path)
    assert_error(answer, 405, None, "method_not_allowed")
    assert allow in answer.headers["allow"]
    assert allow in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["other", "fake/", "a/b/c", "fake%00", "%2e%2e"])
async def test_an_unknown_model_has_no_description(client: httpx.AsyncClient, name: str) -> None:
    assert_error(await client.get(f"/v1/models/{name}"), 404, "model", "model_not_found")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, TOKENIZE, DETOKENIZE])
async def test_a_body_declared_too_large_is_refused(client: httpx.AsyncClient, path: str) -> None:
    assert_error(await post(client, path, b" " * (2**20 + 1)), 413, None, "request_too_large")
    await assert_serves(client, path)


async def test_a_body_declared_too_large_is_refused_before_it_is_read(client: httpx.AsyncClient) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    answer = await post(client, CHAT, never(), **{"content-length": str(2**20 + 1)})
    assert_error(answer, 413, None, "request_too_large")


async def test_a_body_that_grows_too_large_is_refused(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * 2**16

    answer = await post(client, CHAT, chunks(), **{"transfer-encoding": "chunked"})
    assert_error(answer, 413, None, "request_too_large")
    await assert_serves(client)


async def test_a_body_of_exactly_the_limit_is_read(client: httpx.AsyncClient) -> None:
    answer = await post(client, CHAT, GOOD_CHAT + " " * (2**20 - len(GOOD_CHAT)))
    assert answer.status_code == 200


@pytest.mark.parametrize("given", ["my-request-1", "!", "~" * 128])
async def test_a_client_s_request_id_is_kept(client: httpx.AsyncClient, given: str) -> None:
    answer = await post(client, CHAT, b"{", **{"x-request-id": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "tab\there"], ids=case_id)
async def test_an_unfit_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await post(client, CHAT, b"{", **{"x-request-id": given})
    assert answer.headers["x-request-id"].startswith("req_")


# -- access -----------------------------------------------------------------------------------------------------

KEY = "tk-a-key-for-this-test"


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/models", "/tokenize", "/metrics", "/admin/keys", "/unknown", "//livez", "/docs/x", "//docs"]
)
@pytest.mark.parametrize("header", [None, "Bearer wrong-key", f"Basic {KEY}", KEY])
async def test_every_path_answers_401_without_a_key(path: str, header: str | None) -> None:
    async with (
        serving(host="0.0.0.0", api_key=[KEY]) as server,
        httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka") as client,
    ):
        answer = await client.get(f"http://tokka{path}", headers={"authorization": header} if header else {})
    assert_error(answer, 401, None, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/health", "/version", "/docs", "/openapi.json"])
async def test_probes_and_reference_need_no_key(path: str) -> None:
    async with (
        serving(host="0.0.0.0", api_key=[KEY]) as server,
        httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://tokka") as client,
    ):
        assert (await client.get(path)).status_code == 200


# -- counted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status", "outcome"),
    [(GOOD_CHAT, 200, "length"), ("{", 400, "invalid"), (raw(CHAT, "model", '"x"'), 404, "invalid")],
)
async def test_every_request_is_counted_under_exactly_one_outcome(
    server: Any, client: httpx.AsyncClient, content: str, status: int, outcome: str
) -> None:
    assert (await post(client, CHAT, content)).status_code == status
    counted = [
        (sample.labels["outcome"], sample.value)
        for family in server.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "tokka_requests_total"
    ]
    assert counted == [(outcome, 1.0)]

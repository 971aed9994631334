"""Good bodies of each endpoint, and the check of a refusal."""

from __future__ import annotations

from typing import Any

import httpx

from tokka.protocol.response_models import ErrorBody

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
RESPONSES = "/v1/responses"


USER = {"role": "user", "content": "Hei"}


ASSISTANT = {"role": "assistant", "content": "Hei"}


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fake", "messages": [USER], "max_tokens": 3},
    COMPLETIONS: {"model": "fake", "prompt": "Hei", "max_tokens": 3},
    RESPONSES: {"model": "fake", "input": "Hei", "max_output_tokens": 3},
    TOKENIZE: {"prompt": "Hei"},
    DETOKENIZE: {"tokens": [72, 101, 105]},
}


MAX_MESSAGE_BYTES = 1200


async def post(client: httpx.AsyncClient, path: str, content: Any, **headers: str) -> httpx.Response:
    return await client.post(path, content=content, headers={"content-type": "application/json", **headers})


def assert_error(answer: httpx.Response, status: int, param: str | None, code: str = "invalid_value") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = ErrorBody.model_validate_json(answer.content).error
    assert (error.param, error.code) == (param, code), error
    assert error.type == "invalid_request_error"
    assert error.message
    assert len(error.message.encode()) < MAX_MESSAGE_BYTES
    assert "Traceback" not in error.message


async def assert_serves(client: httpx.AsyncClient, path: str = CHAT) -> None:
    assert (await client.post(path, json=GOOD[path])).status_code == 200


def case_id(value: Any) -> str:
    return str(value)[:40]

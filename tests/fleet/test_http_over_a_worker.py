"""The whole server over an engine in a worker: the gateway of `scripts/bench fleet`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks.load.fleet import gateway

from tests.program import Program, running

OPTIONS = ("tool_calls=true", "thoughts=true")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hei"}]}
# Of a response and of its chunks: the rest differs from request to request.
SHOWN = ("choices", "usage")


def plain(program: Program, **fields: Any) -> dict[str, Any]:
    with program.client() as client:
        response = client.post("/v1/chat/completions", json={**CHAT, **fields})
    assert response.status_code == 200, response.text
    shown = {name: value for name, value in response.json().items() if name in SHOWN}
    for choice in shown["choices"]:
        for call in choice["message"].get("tool_calls") or ():
            call.pop("id")
    return shown


def chunks(program: Program, **fields: Any) -> list[Any]:
    with program.client() as client:
        text = client.post("/v1/chat/completions", json={**CHAT, "stream": True, **fields}).text
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event)["choices"] for event in events[:-1]]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_responses_are_the_same_over_a_worker(tls: bool) -> None:
    engine = ("--engine", "fake", *(f"--engine-arg={option}" for option in OPTIONS))
    with running(*engine) as near, gateway(OPTIONS, tls=tls) as far:
        for fields in ({}, {"n": 2, "logprobs": True, "top_logprobs": 2}, {"tools": [TOOL]}, {"max_tokens": 3}):
            assert plain(far, **fields) == plain(near, **fields)
        assert chunks(far) == chunks(near)


def vectors(program: Program) -> list[Any]:
    # More inputs than the engine works on at once.
    asked = {"model": "fake", "input": [f"text {number}" for number in range(200)], "encoding_format": "base64"}
    with program.client() as client:
        response = client.post("/v1/embeddings", json=asked)
    assert response.status_code == 200, response.text
    data: list[Any] = response.json()["data"]
    return data


def test_vectors_are_the_same_over_a_worker() -> None:
    with running("--engine", "fake") as near, gateway() as far:
        assert len(vectors(far)) == 200
        assert vectors(far) == vectors(near)


def test_killed_worker_ends_a_stream_with_an_error_event() -> None:
    with gateway(["token_delay_s=0.05"]) as program:
        asked = {**CHAT, "stream": True, "max_tokens": 2000, "ignore_eos": True}
        with program.client() as client, client.stream("POST", "/v1/chat/completions", json=asked) as response:
            lines = response.iter_lines()
            next(lines)
            (worker,) = program.children()
            worker.kill()
            rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_error"
        assert rest[-1] == "data: [DONE]"

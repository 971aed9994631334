"""No request blocks the event loop of the real engine's server, however long its fields are.

The bound limits the CPU time of the loop's thread per turn; tests/conftest.py fails the whole test run beyond it.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from tests.program import TENANTS, TURN_BOUND_S, Program
from tests.wire import metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MANY = {"prompt": [[5]] * 1024, "max_tokens": 0}
ASTRAL = [chr(0x1F600 + number) * 250 for number in range(60)]


def schema(properties: int) -> dict[str, Any]:
    names = [f"p{number}" for number in range(properties)]
    properties_of = {name: {"type": "string", "maxLength": 9} for name in names}
    return {"type": "object", "properties": properties_of, "required": names, "additionalProperties": False}


def tools(count: int, properties: int) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": f"f{number}", "parameters": schema(properties)}}
        for number in range(count)
    ]


# (path, fields, status): one case for each list of a request, with its maximum length.
CASES: list[tuple[str, dict[str, Any], int]] = [
    (COMPLETIONS, {**MANY, "bad_words": ASTRAL}, 200),
    (COMPLETIONS, {**MANY, "stop": [f"{number}" * 120 for number in range(16)]}, 200),
    (COMPLETIONS, {**MANY, "stop_token_ids": [*range(64)]}, 200),
    (COMPLETIONS, {**MANY, "logit_bias": {str(number): 1 for number in range(64)}}, 200),
    (COMPLETIONS, {**MANY, "allowed_token_ids": [*range(64)]}, 200),
    (COMPLETIONS, {"prompt": [[5]] * 8, "max_tokens": 1, "allowed_token_ids": [*range(8192)]}, 200),
    (COMPLETIONS, {"prompt": ["Hei"] * 1024, "max_tokens": 0, "echo": True, "logprobs": 5}, 200),
    (COMPLETIONS, {"prompt": [[5]] * 4, "n": 128, "temperature": 1, "max_tokens": 2, "logprobs": 5}, 200),
    (COMPLETIONS, {"prompt": "word " * 3000, "max_tokens": 0, "echo": True, "logprobs": 5}, 200),
    (COMPLETIONS, {"prompt": "word " * 1000, "max_tokens": 1, "n": 32, "temperature": 1, "echo": True}, 200),
    (COMPLETIONS, {"prompt": [5] * 450_000}, 400),
    (COMPLETIONS, {"prompt": [[5] * 440] * 1024, "max_tokens": 8000}, 400),
    (COMPLETIONS, {"prompt": "x" * 1_000_000}, 400),
    (COMPLETIONS, {"prompt": "word " * 200_000}, 400),
    (CHAT, {"messages": [{"role": "user", "content": "a"}] * 4096}, 400),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1024}] * 25}, 400),
    (CHAT, {"n": 64, "logprobs": True, "top_logprobs": 20, "temperature": 1, "max_tokens": 4}, 200),
    (CHAT, {"tools": tools(128, 20), "tool_choice": "required"}, 400),
    (CHAT, {"tools": tools(20, 9), "tool_choice": "required", "max_tokens": 1}, 200),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema(900)}}}, 200),
    (CHAT, {"structured_outputs": {"choice": ["c" * 15 + str(number) for number in range(3000)]}}, 200),
    ("/tokenize", {"prompt": "word " * 200_000}, 200),
    ("/tokenize", {"messages": [{"role": "user", "content": "a"}] * 4096}, 200),
    ("/detokenize", {"tokens": [5] * 450_000}, 200),
]
BROKEN = [b"[" * 1_000_000, b"[" + b"1," * 500_000, b'{"messages": [' + b"{}," * 300_000, b'{"a":' * 200_000]


def body_of(path: str, fields: dict[str, Any], model: str) -> dict[str, Any]:
    if path == CHAT:
        return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, **fields}
    return {"model": model, **fields}


def test_request_holds_the_loop_for_no_longer_than_the_bound(smollm2: Program) -> None:
    slow: list[str] = []
    with smollm2.client() as client:
        # A longer turn than this one comes from the requests below.
        before = metric(client, "tokka_event_loop_longest_turn_seconds")
        for path, fields, status in CASES:
            answer = client.post(path, json=body_of(path, fields, smollm2.model), timeout=300)
            assert answer.status_code == status, (answer.text[:300], list(fields))
            longest = metric(client, "tokka_event_loop_longest_turn_seconds")
            if longest > max(before, TURN_BOUND_S):
                slow.append(f"{path} {list(fields)}: {longest:.3f} s")
            before = max(before, longest)
        for body in BROKEN:
            headers = {"content-type": "application/json"}
            assert client.post(COMPLETIONS, content=body, headers=headers).status_code == 400
        assert metric(client, "tokka_event_loop_longest_turn_seconds") <= TURN_BOUND_S
    assert not slow


def test_small_request_is_rendered_while_another_tenant_s_texts_wait(tenants: Program) -> None:
    # A large text occupies a rendering thread for much of a second, a small one for milliseconds.
    large = json.dumps({"prompt": "The reindeer runs. " * 50_000}).encode()
    greedy, single = ({"authorization": f"Bearer {key}", "content-type": "application/json"} for key in TENANTS)
    ended: list[str] = []

    def tokenize(number: int) -> None:
        with tenants.client() as own:
            assert own.post("/tokenize", content=large, headers=greedy).status_code == 200
        ended.append(f"large {number}")

    threads = [threading.Thread(target=tokenize, args=(number,)) for number in range(6)]
    with tenants.client() as client:
        for thread in threads:
            thread.start()
        _wait_until_busy(client, single)
        assert client.post("/tokenize", json={"prompt": "Hi"}, headers=single).status_code == 200
        ended.append("small")
        for thread in threads:
            thread.join()
    # One large text may end first: a thread was already rendering it.
    assert ended.index("small") <= 1, ended


def _wait_until_busy(client: httpx.Client, headers: dict[str, str]) -> None:
    """Wait until the server has used 0.1 s of CPU: it then renders the first large text."""
    before = metric_of(client, headers)
    while metric_of(client, headers) - before < 0.1:
        pass


def metric_of(client: httpx.Client, headers: dict[str, str]) -> float:
    lines = client.get("/metrics", headers=headers).text.splitlines()
    return float(next(line for line in lines if line.startswith("tokka_frontend_cpu_seconds_total")).split()[1])

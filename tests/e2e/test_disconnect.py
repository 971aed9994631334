"""A disconnect stops the generation within a second, so that the engine computes no unread tokens."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from tests.program import Program, eventually
from tests.wire import metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

LONG: dict[str, Any] = {"prompt": "Once", "max_tokens": 6000, "ignore_eos": True, "temperature": 0}


def running(client: httpx.Client) -> int:
    """Return the number of in-flight choices from vLLM's own gauge."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("vllm:num_requests_running"):
            return int(float(line.split()[-1]))
    raise AssertionError("vLLM's gauge is missing")


def aborted(client: httpx.Client) -> float:
    return metric(client, "tokka_requests_total", outcome="aborted")


@pytest.mark.parametrize("n", [1, 4])
def test_disconnected_stream_stops_within_a_second(smollm2: Program, n: int) -> None:
    with smollm2.client() as client:
        before = aborted(client)
        body = {**LONG, "model": smollm2.model, "stream": True, "n": n, "temperature": 0.7}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            # Keep the iterator: httpx closes the stream when the iterator is dropped.
            pieces = answer.iter_bytes()
            next(pieces)
            eventually(lambda: running(client) == n, within_s=10)
        assert eventually(lambda: running(client) == 0, within_s=1.0) < 1.0
        eventually(lambda: aborted(client) == before + 1, within_s=1.0)


def test_disconnected_plain_request_stops_within_a_second(smollm2: Program) -> None:
    with smollm2.client() as client:
        before = aborted(client)
        hasty = httpx.Client(base_url=smollm2.url)

        def give_up() -> None:
            with pytest.raises(httpx.ReadTimeout):
                hasty.post("/v1/completions", json={**LONG, "model": smollm2.model}, timeout=3)

        waiting = threading.Thread(target=give_up)
        waiting.start()
        eventually(lambda: running(client) == 1, within_s=3)
        waiting.join()
        hasty.close()
        assert eventually(lambda: running(client) == 0, within_s=1.0) < 1.0
        eventually(lambda: aborted(client) == before + 1, within_s=1.0)

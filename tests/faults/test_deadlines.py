"""Deadlines: no request waits forever in the queue, for its first token, or between tokens."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest

from tests.faults.streams import endless, streaming
from tests.program import Program, eventually, running
from tests.wire import metric

# One request runs slowly; the others are queued.
NARROW = ("--engine", "fake", "--engine-arg", "max_running=1", "--engine-arg", "token_delay_s=0.02")
BUSY = endless(1, "busy", max_tokens=3000)


def body(program: Program, **fields: Any) -> dict[str, Any]:
    return {"model": program.model, "prompt": "next", "max_tokens": 4, **fields}


@pytest.mark.parametrize("stream", [False, True])
def test_the_queues_time_ends_in_504(stream: bool) -> None:
    options = (*NARROW, "--queue-timeout", "0.5", "--drain-timeout", "0")
    with running(*options) as program, program.client() as client, streaming(program, BUSY):
        began_s = time.monotonic()
        refused = client.post("/v1/completions", json=body(program, stream=stream))
        assert 0.5 <= time.monotonic() - began_s < 2
        assert refused.status_code == 504
        assert refused.json()["error"]["code"] == "request_timeout"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert metric(client, "tokka_requests_waiting") == 0
        assert program.stop() == 0


def test_a_requests_own_time_in_the_queue_ends_in_504() -> None:
    with running(*NARROW, "--drain-timeout", "0") as program, program.client() as client, streaming(program, BUSY):
        refused = client.post("/v1/completions", json=body(program, timeout=0.3))
        assert refused.status_code == 504
        assert refused.json()["error"]["code"] == "request_timeout"
        assert program.stop() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_requests_time_cuts_its_answer_short(stream: bool) -> None:
    with running(*NARROW) as program, program.client() as client:
        long = body(program, max_tokens=1000, ignore_eos=True, timeout=0.5)
        began_s = time.monotonic()
        answer = client.post("/v1/completions", json={**long, "stream": stream})
        assert 0.5 <= time.monotonic() - began_s < 2
        assert answer.status_code == 200
        assert '"finish_reason":"length","stop_reason":"timeout"' in answer.text
        eventually(lambda: metric(client, "tokka_requests_running") == 0, within_s=1)
        assert metric(client, "tokka_requests_total", outcome="timeout") == 1


def test_the_servers_cap_holds_whatever_a_request_allows_itself() -> None:
    with running(*NARROW, "--request-timeout", "0.5") as program, program.client() as client:
        began_s = time.monotonic()
        answer = client.post("/v1/completions", json=body(program, max_tokens=1000, ignore_eos=True, timeout=600))
        assert 0.5 <= time.monotonic() - began_s < 2
        assert answer.json()["choices"][0]["stop_reason"] == "timeout"


def test_a_client_that_leaves_the_queue_leaves_its_place() -> None:
    with running(*NARROW, "--drain-timeout", "0") as program, program.client() as client, streaming(program, BUSY):
        hasty = httpx.Client(base_url=program.url)

        def give_up() -> None:
            with pytest.raises(httpx.ReadTimeout):
                hasty.post("/v1/completions", json=body(program), timeout=1)

        waiting = threading.Thread(target=give_up)
        waiting.start()
        eventually(lambda: metric(client, "tokka_requests_waiting") == 1, within_s=1)
        waiting.join()
        hasty.close()
        eventually(lambda: metric(client, "tokka_requests_waiting") == 0, within_s=1)
        assert metric(client, "tokka_requests_total", outcome="aborted") == 1
        assert program.stop() == 0


def test_queued_requests_are_served_and_their_wait_is_measured() -> None:
    with running("--engine", "fake", "--engine-arg", "max_running=2", "--engine-arg", "token_delay_s=0.02") as program:
        bodies = [{"prompt": f"turn {place}", "max_tokens": 20, "ignore_eos": True} for place in range(8)]
        with program.client() as client:
            with streaming(program, bodies) as streams:
                pass
            assert [stream.terminals() for stream in streams] == [["length"]] * 8
            assert metric(client, "tokka_queue_seconds_count") == 8
            # Pairs of requests run in rounds of 0.4 s and wait 0, 1, 2 and 3 rounds. The factor allows for the time
            # to send them.
            assert metric(client, "tokka_queue_seconds_sum") > 0.4 * (2 + 4 + 6) * 0.8

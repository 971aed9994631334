"""An engine that computes for long is not dead: the watchdog waits for a long prefill of the real one."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from tests.program import eventually, running
from tests.wire import metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

# The least the settings allow.
STALL_TIMEOUT_S = 3


def test_one_step_of_several_times_the_stall_timeout_is_waited_for() -> None:
    # Many long prompts in one single step.
    options = ("--stall-timeout", str(STALL_TIMEOUT_S), "--engine-arg", "max_num_batched_tokens=65536")
    with running(*options) as program, program.client() as client:
        prompts = [f"{place} " + "word " * 7000 for place in range(3)]
        answers: list[httpx.Response] = []

        def ask() -> None:
            with httpx.Client(base_url=program.url, timeout=250) as own:
                body = {"model": program.model, "prompt": prompts, "max_tokens": 1}
                answers.append(own.post("/v1/completions", json=body))

        asking = threading.Thread(target=ask)
        began_s = time.monotonic()
        asking.start()
        eventually(lambda: metric(client, "tokka_requests_running") > 0 or bool(answers), within_s=60)
        while asking.is_alive():
            # Probes answer all the time, and tell the truth: this request will be served.
            assert client.get("/livez").elapsed.total_seconds() < 1
            assert client.get("/readyz").status_code == 200
            asking.join(0.2)
        took_s = time.monotonic() - began_s
        (answer,) = answers
        assert answer.status_code == 200
        assert took_s > 2 * STALL_TIMEOUT_S, "the step was too short to show anything"
        assert metric(client, "tokka_engine_restarts_total") == 0

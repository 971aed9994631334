"""A slow engine is not dead: the watchdog waits for a long prefill of the real engine."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from tests.program import TENANTS, Program, eventually
from tests.wire import metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

# Seconds; the setting's minimum, which the server `sharing` uses.
STALL_TIMEOUT_S = 3
# Number of prompts, and words of each. Each entry takes at most four times the work of the one before. At any speed
# of the machine, the first entry that is long enough thus ends within the watchdog's tenfold patience.
SIZES = [(1, 1750), (1, 3500), (1, 7000), (2, 7000), (4, 7000), (8, 7000)]


def watched_s(program: Program, client: httpx.Client, prompts: list[str]) -> float:
    """Send the prompts in one request, probe until its response, and return the seconds it took."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=program.url, timeout=120) as own:
            body = {"model": program.model, "prompt": prompts, "max_tokens": 1}
            headers = {"authorization": f"Bearer {TENANTS[0]}"}
            answers.append(own.post("/v1/completions", json=body, headers=headers))

    asking = threading.Thread(target=ask)
    began_s = time.monotonic()
    asking.start()
    eventually(lambda: metric(client, "tokka_requests_running") > 0 or bool(answers), within_s=60)
    while asking.is_alive():
        # Probes answer all the time and report ready: the server will answer this request.
        assert client.get("/livez").elapsed.total_seconds() < 1
        assert client.get("/readyz").status_code == 200
        asking.join(0.2)
    took_s = time.monotonic() - began_s
    (answer,) = answers
    assert answer.status_code == 200
    return took_s


def test_one_step_of_several_times_the_stall_timeout_is_waited_for(sharing: Program) -> None:
    # All prompts of a request fit into one step, but the first may get its own step before the others arrive.
    # The longer of two steps takes at least half of the time, which is more than the stall timeout.
    with sharing.client() as client:
        restarts = metric(client, "tokka_engine_restarts_total")
        took_s = 0.0
        for count, words in SIZES:
            # The prompts differ from the first word on, so that the prefix cache shortens none.
            prompts = [f"{count} {words} {place} " + "word " * words for place in range(count)]
            took_s = watched_s(sharing, client, prompts)
            if took_s > 2 * STALL_TIMEOUT_S:
                break
        assert took_s > 2 * STALL_TIMEOUT_S, "the step was too short to show anything"
        assert metric(client, "tokka_engine_restarts_total") == restarts

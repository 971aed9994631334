"""Fairness on the real engine: one tenant fills the queue, and another tenant's single requests are served soon."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.program import TENANTS, Program, eventually
from tests.wire import metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CROWD, SINGLE = TENANTS
OPEN = 24
# Maximum number of in-flight requests of the server `tenants`.
SLOTS = 4
TOKENS = 64


def served_of_crowd(client: httpx.Client) -> float:
    """Return how many of the crowd's requests have ended by the server's count: the client threads may lag behind."""
    return metric(client, "tokka_tokens_total", tenant="key-1", kind="completion") / TOKENS


@pytest.mark.parametrize("words", [5, 300], ids=["short prompts", "long prompts"])
def test_single_requests_overtake_an_earlier_crowd(tenants: Program, words: int) -> None:
    over = threading.Event()

    # All threads share one client: creating one costs more than a short completion.
    with tenants.client() as client, ThreadPoolExecutor(OPEN) as pool:

        def ask(key: str, prompt: str, max_tokens: int) -> int:
            body: dict[str, Any] = {"model": tenants.model, "prompt": prompt, "ignore_eos": True}
            body["max_tokens"] = max_tokens
            headers = {"authorization": f"Bearer {key}"}
            return client.post("/v1/completions", json=body, headers=headers, timeout=200).status_code

        def crowd(place: int) -> list[int]:
            """Send requests one after the other, so that the number of open requests stays constant."""
            answers = [ask(CROWD, f"{place} " + "word " * words, TOKENS)]
            while not over.is_set():
                answers.append(ask(CROWD, f"{place} {len(answers)} " + "word " * words, TOKENS))
            return answers

        members = [pool.submit(crowd, place) for place in range(OPEN)]
        try:
            eventually(lambda: metric(client, "tokka_requests_waiting") >= OPEN / 2, within_s=60)
            for place in range(3):
                before = served_of_crowd(client)
                assert ask(SINGLE, f"alone {place}", 8) == 200
                # The single request was among the next: the server served only a few of the crowd's meanwhile.
                assert served_of_crowd(client) - before <= 3 * SLOTS
        finally:
            over.set()
        assert {status for member in members for status in member.result()} == {200}

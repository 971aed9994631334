"""A crowd of one tenant on the real engine: another tenant's single requests, and the crowd itself, are served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.program import Program, eventually, running
from tests.wire import metric

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CROWD, SINGLE = "crowd-0123456789abcdef", "single-0123456789abcdef"
OPEN = 24
# Of those that run at once.
SLOTS = 4
TOKENS = 96


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    # The last of the crowd waits for all before it, on a slow machine for minutes.
    options = ("--max-num-seqs", str(SLOTS), "--queue-timeout", "600")
    with running("--api-key", CROWD, "--api-key", SINGLE, *options) as started:
        yield started


def ask(program: Program, key: str, prompt: str, max_tokens: int) -> httpx.Response:
    body: dict[str, Any] = {"model": program.model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{program.url}/v1/completions", json=body, headers=headers, timeout=200)


def waiting(client: httpx.Client) -> float:
    return metric(client, "tokka_requests_waiting")


def served_of_crowd(client: httpx.Client) -> float:
    """Return how many of the crowd's requests have ended, as the server counts them: its threads here may lag."""
    return metric(client, "tokka_tokens_total", tenant="key-1", kind="completion") / TOKENS


@pytest.mark.parametrize("words", [5, 300], ids=["short prompts", "long prompts"])
def test_single_requests_are_served_long_before_the_crowd_that_came_first(program: Program, words: int) -> None:
    answers: list[httpx.Response] = []

    def crowd(place: int) -> None:
        answers.append(ask(program, CROWD, f"{place} " + "word " * words, TOKENS))

    threads = [threading.Thread(target=crowd, args=(place,)) for place in range(OPEN)]
    for thread in threads:
        thread.start()
    try:
        with program.client() as client:
            eventually(lambda: waiting(client) >= OPEN / 2, within_s=60)
            for place in range(3):
                before = served_of_crowd(client)
                single = ask(program, SINGLE, f"alone {place}", 8)
                assert single.status_code == 200
                # Its turn was among the next: no more than a few of the crowd were served meanwhile.
                assert served_of_crowd(client) - before <= 3 * SLOTS
                assert waiting(client) > 0, "the crowd was over: nothing was shown"
    finally:
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200] * OPEN

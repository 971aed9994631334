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
OPEN = 60
# Of those that run at once.
SLOTS = 4


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running("--api-key", CROWD, "--api-key", SINGLE, "--max-num-seqs", str(SLOTS)) as started:
        yield started


def ask(program: Program, key: str, prompt: str, max_tokens: int) -> httpx.Response:
    body: dict[str, Any] = {"model": program.model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{program.url}/v1/completions", json=body, headers=headers, timeout=200)


def waiting(program: Program) -> float:
    with program.client() as client:
        return metric(client, "tokka_requests_waiting")


@pytest.mark.parametrize("words", [5, 300], ids=["short prompts", "long prompts"])
def test_single_requests_are_served_long_before_the_crowd_that_came_first(program: Program, words: int) -> None:
    answers: list[httpx.Response] = []

    def crowd(place: int) -> None:
        answers.append(ask(program, CROWD, f"{place} " + "word " * words, 24))

    threads = [threading.Thread(target=crowd, args=(place,)) for place in range(OPEN)]
    for thread in threads:
        thread.start()
    eventually(lambda: waiting(program) >= OPEN / 2, within_s=60)
    for place in range(4):
        before = len(answers)
        single = ask(program, SINGLE, f"alone {place}", 8)
        assert single.status_code == 200
        # Its turn was among the next: what ran made room, and no more than a few of the crowd were served meanwhile.
        assert len(answers) - before <= 3 * SLOTS
        assert waiting(program) > 0, "the crowd was over: nothing was shown"
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * OPEN

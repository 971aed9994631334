"""Daily and monthly quotas across servers of one database: 30 requests at once cannot exceed the quota."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.faults.keys import bearer, tokka
from tests.program import Program, eventually, running_together
from tests.store.databases import Postgres

QUOTA, LONGEST = 400, 30
# Fast enough for a test, and long enough for all requests to run at the same time.
DELAY = ("--engine", "fake", "--engine-arg", "token_delay_s=0.02")


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    if request.param == "sqlite":
        return "--state-dir", str(tmp_path)
    postgres: Postgres = request.getfixturevalue("postgres")
    return "--database-url", postgres.new_database()


def ask(program: Program, secret: str, tokens: int) -> httpx.Response:
    body = {"model": "fake", "prompt": "hello", "max_tokens": tokens, "ignore_eos": True}
    return httpx.post(f"{program.url}/v1/completions", json=body, headers=bearer(secret), timeout=60)


def used_until_refused(program: Program, secret: str) -> int:
    """Send requests until the quota is used up, and wait for each Retry-After; return the tokens of all responses."""
    used = 0
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        answer = ask(program, secret, LONGEST - 5)
        if answer.status_code == 200:
            used += answer.json()["usage"]["total_tokens"]
        elif answer.json()["error"]["code"] == "insufficient_quota":
            return used
        else:
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            time.sleep(float(answer.headers["retry-after"]))
    raise AssertionError("refused for ever")


def is_served(program: Program, secret: str) -> bool:
    return ask(program, secret, 1).status_code == 200


@pytest.mark.parametrize("quota", ["--daily-tokens", "--monthly-tokens"])
def test_two_servers_serve_no_more_than_one_quota(where: tuple[str, str], quota: str) -> None:
    secret = tokka("keys", "create", "--name", "a", quota, str(QUOTA), "--quiet", *where)
    with running_together((*DELAY, *where), (*DELAY, *where)) as programs:
        # Wait until each server has a part of the quota.
        for program in programs:
            eventually(partial(is_served, program, secret), within_s=10)
        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(lambda place: ask(programs[place % 2], secret, LONGEST - 5), range(30)))
        assert {answer.status_code for answer in answers} == {200, 429}
        at_once = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
        assert at_once <= QUOTA
        with ThreadPoolExecutor(6) as pool:
            later = sum(pool.map(lambda place: used_until_refused(programs[place % 2], secret), range(6)))
        # The first requests took six tokens per server. The total is within the quota, less than one request below it.
        total = at_once + later + 12
        assert QUOTA - LONGEST < total <= QUOTA

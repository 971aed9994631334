"""The plan of a run: the arrival times and the prompts of its requests."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tokka.bench.plan import Plan, Tenant, poisson, sizes
from tokka.bench.request import requests_of


def endless(plan: Plan, tenant: Tenant, chance: random.Random) -> Iterator[bytes]:
    return requests_of(plan, tenant, chance, sizes(plan, tenant, chance))


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    first, again, other = (poisson(5, 60, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_arrivals_are_a_poisson_process() -> None:
    moments = poisson(10, 2000, random.Random(3))
    gaps = [after - before for before, after in pairwise(moments)]
    assert len(moments) == pytest.approx(20_000, rel=0.03)
    # The standard deviation of exponential gaps equals their mean.
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.05)
    assert moments[0] > 0
    assert moments[-1] < 2000


def test_bursts_keep_the_rate() -> None:
    moments = poisson(10, 2000, random.Random(3), burst=8)
    assert len(moments) == pytest.approx(20_000, rel=0.1)
    assert len(set(moments)) == len(moments) / 8


def test_arrivals_are_no_more_than_wanted() -> None:
    # Without the limit, the arrivals at this rate would take all memory.
    moments = poisson(1e9, 1e9, random.Random(3), burst=8, most=20)
    assert len(moments) == 20


def test_nothing_arrives_at_rate_zero() -> None:
    assert poisson(0, 10, random.Random(1)) == []


def test_prompts_differ_unless_asked() -> None:
    plan = Plan("http://127.0.0.1:1", "m", ())
    distinct = endless(plan, Tenant("a"), random.Random(1))
    assert len({next(distinct) for _ in range(50)}) == 50
    alike = endless(Plan("http://127.0.0.1:1", "m", (), same_prompt=True), Tenant("a"), random.Random(1))
    assert len({next(alike) for _ in range(50)}) == 1


def asked(plan: Plan, seed: int, count: int) -> list[str]:
    bodies = (request.partition(b"\r\n\r\n")[2] for request in endless(plan, Tenant("a"), random.Random(seed)))
    return [json.loads(body)["messages"][0]["content"] for body in itertools.islice(bodies, count)]


def test_file_prompts_are_sent_in_order_from_a_random_start() -> None:
    prompts = tuple({"prompt": str(number)} for number in range(5))
    plan = Plan("http://127.0.0.1:1", "m", (), prompts=prompts)
    turns = {tuple(asked(plan, seed, 12)) for seed in range(40)}
    ring = [str(number) for number in range(5)] * 4
    assert turns == {tuple(ring[first : first + 12]) for first in range(5)}


def test_conversation_is_asked_as_it_is() -> None:
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "why"}]
    plan = Plan("http://127.0.0.1:1", "m", (), prompts=({"messages": messages},), ignore_eos=False)
    request = next(endless(plan, Tenant("a", max_tokens=3), random.Random(1)))
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    assert body == {
        "model": "m",
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": messages,
    }

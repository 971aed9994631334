"""When requests arrive, and what they ask."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tokka.bench.plan import Plan, Tenant, arrivals
from tokka.bench.request import requests_of


def test_arrivals_are_the_same_for_the_same_seed() -> None:
    first, again, other = (arrivals(5, 60, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_arrivals_are_a_poisson_process() -> None:
    moments = arrivals(10, 2000, random.Random(3))
    gaps = [after - before for before, after in pairwise(moments)]
    assert len(moments) == pytest.approx(20_000, rel=0.03)
    # Exponential gaps: as much deviation as mean.
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.05)
    assert moments[0] > 0
    assert moments[-1] < 2000


def test_bursts_keep_the_rate() -> None:
    moments = arrivals(10, 2000, random.Random(3), burst=8)
    assert len(moments) == pytest.approx(20_000, rel=0.1)
    assert len(set(moments)) == len(moments) / 8


def test_nothing_arrives_at_rate_zero() -> None:
    assert arrivals(0, 10, random.Random(1)) == []


def test_prompts_differ_unless_asked() -> None:
    plan = Plan("http://127.0.0.1:1", "m", ())
    distinct = requests_of(plan, Tenant("a"), random.Random(1))
    assert len({next(distinct) for _ in range(50)}) == 50
    alike = requests_of(Plan("http://127.0.0.1:1", "m", (), same_prompt=True), Tenant("a"), random.Random(1))
    assert len({next(alike) for _ in range(50)}) == 1

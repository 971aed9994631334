"""Turns are handed out fairly between tenants, and none gets lost, whoever gives up when."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.errors import ServerOverloaded
from tokka.turns import Capacity, FairTurns, TurnQueue

ONE = Capacity(places=1, long_cost=1000, waiting_cost=10_000)
TWO = Capacity(places=2, long_cost=1000, waiting_cost=100_000)


def order_of(queue: TurnQueue) -> list[Any]:
    """Run what is queued, one after the other; return it in the order in which it ran."""
    ran = []
    while (job := queue.next()) is not None:
        ran.append(job.turn)
        queue.done(job)
    return ran


def test_turn_queue_serves_tenants_in_turn() -> None:
    queue = TurnQueue(ONE)
    for number in range(5):
        queue.put("greedy", 10, f"greedy {number}")
    queue.put("other", 10, "other 0")
    queue.put("other", 10, "other 1")
    assert order_of(queue)[:4] == ["greedy 0", "other 0", "greedy 1", "other 1"]


def test_turn_queue_counts_costs_not_jobs() -> None:
    queue = TurnQueue(ONE)
    for number in range(3):
        queue.put("large", 90, f"large {number}")
    for number in range(6):
        queue.put("small", 10, f"small {number}")
    assert order_of(queue)[:8] == ["large 0", *(f"small {number}" for number in range(6)), "large 1"]


def test_turn_queue_gives_no_credit_for_idleness() -> None:
    queue = TurnQueue(ONE)
    for number in range(20):
        queue.put("busy", 10, f"busy {number}")
    order_of(queue)
    for number in range(3):
        queue.put("busy", 10, f"busy {number}")
        queue.put("idle so far", 10, f"idle {number}")
    ran = order_of(queue)
    assert [name.split()[0] for name in ran[:4]].count("idle") == 2


def test_turn_queue_keeps_a_place_free_of_long_jobs() -> None:
    queue = TurnQueue(TWO)
    queue.put("a", 5000, "long 1")
    queue.put("a", 5000, "long 2")
    first = queue.next()
    assert first
    assert first.turn == "long 1"
    assert queue.next() is None
    queue.put("a", 1, "short")
    second = queue.next()
    assert second
    assert second.turn == "short"


def test_turn_queue_bounds_what_waits() -> None:
    queue = TurnQueue(ONE)
    # Whatever its cost, a single job may wait.
    queue.put("a", 20_000, "huge")
    with pytest.raises(ServerOverloaded) as refused:
        queue.put("b", 1, "next")
    assert refused.value.retry_after_s
    order_of(queue)
    queue.put("a", 5000, "half")
    with pytest.raises(ServerOverloaded):
        queue.put("a", 1, "more than a tenant's half")
    queue.put("b", 5000, "the other half")


def test_turn_queue_forgets_a_job_that_left() -> None:
    queue = TurnQueue(ONE)
    left = queue.put("a", 5000, "left")
    queue.leave(left)
    queue.put("a", 5000, "stays")
    assert order_of(queue) == ["stays"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=30, max_size=60))
def test_turn_queue_gives_equal_shares_while_all_wait(jobs: list[tuple[str, int]]) -> None:
    queue = TurnQueue(Capacity(places=1, long_cost=10**9, waiting_cost=10**9))
    left = Counter(tenant for tenant, _ in jobs)
    for tenant, cost in jobs:
        queue.put(tenant, cost, tenant)
    served: Counter[str] = Counter()
    while min(left[tenant] for tenant in left) > 0 and (job := queue.next()) is not None:
        served[job.tenant] += job.cost
        left[job.tenant] -= 1
        queue.done(job)
    # A tenant is ahead of another by one job of each at the most.
    assert max(served[tenant] for tenant in left) - min(served[tenant] for tenant in left) <= 100


class Gate:
    """Jobs that end when they are told to."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Future[str]] = {}

    def start(self, name: str) -> asyncio.Future[str]:
        self.began.append(name)
        self._ends[name] = asyncio.get_running_loop().create_future()
        return self._ends[name]

    def end(self, name: str) -> None:
        self._ends[name].set_result(name)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(turns: FairTurns, gate: Gate, name: str) -> asyncio.Task[str]:
    return asyncio.create_task(turns.run(name[0], 1, lambda: gate.start(name)))


async def test_fair_turns_return_what_the_job_returns() -> None:
    turns, gate = FairTurns(ONE), Gate()
    task = run(turns, gate, "a")
    await settled()
    gate.end("a")
    assert await task == "a"


async def test_fair_turns_pass_on_the_job_s_error() -> None:
    turns = FairTurns(ONE)

    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await turns.run("a", 1, fail)
    # Its place is free again.
    assert await turns.run("a", 1, lambda: asyncio.sleep(0, "ran")) == "ran"


async def test_fair_turns_skip_a_waiting_job_that_was_cancelled() -> None:
    turns, gate = FairTurns(ONE), Gate()
    tasks = [run(turns, gate, name) for name in ("a", "b", "c")]
    await settled()
    tasks[1].cancel()
    await settled()
    gate.end("a")
    await settled()
    assert gate.began == ["a", "c"]


@pytest.mark.parametrize("moment", range(6))
async def test_fair_turns_lose_no_turn_whenever_its_owner_leaves(moment: int) -> None:
    turns, gate = FairTurns(ONE), Gate()
    tasks = [run(turns, gate, name) for name in ("a", "b", "c")]
    await settled()
    gate.end("a")
    # At one of these moments the turn has come and its owner has not run since.
    for _ in range(moment):
        await asyncio.sleep(0)
    tasks[1].cancel()
    await settled()
    if "b" in gate.began:
        gate.end("b")
        await settled()
    assert gate.began[-1] == "c"


async def test_fair_turns_hold_the_place_of_a_job_nobody_waits_for() -> None:
    turns, gate = FairTurns(ONE), Gate()
    abandoned, waiting = run(turns, gate, "a"), run(turns, gate, "b")
    await settled()
    abandoned.cancel()
    await settled()
    # A thread cannot be stopped: its place is taken until it ends.
    assert gate.began == ["a"]
    gate.end("a")
    await settled()
    gate.end("b")
    assert await waiting == "b"

"""Turns are fair between tenants, and no turn is lost, whenever a caller gives up."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokka.turns
from tokka.errors import ServerOverloaded
from tokka.turns import Capacity, FairTurns, TurnQueue

ONE = Capacity(places=1, long_places=1, long_cost=1000, waiting_cost=10_000)
TWO = Capacity(places=2, long_places=1, long_cost=1000, waiting_cost=100_000)


def order_of(queue: TurnQueue) -> list[Any]:
    """Run the queued jobs one after the other; return them in that order."""
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


def test_turn_queue_keeps_one_place_free_not_more() -> None:
    queue = TurnQueue(Capacity(places=3, long_places=2, long_cost=1000, waiting_cost=100_000))
    for number in range(3):
        queue.put("a", 5000, number)
    assert queue.next()
    assert queue.next()
    assert queue.next() is None


def test_turn_queue_hands_out_more_short_jobs_than_long_ones() -> None:
    queue = TurnQueue(Capacity(places=4, long_places=1, long_cost=1000, waiting_cost=100_000))
    for number in range(3):
        queue.put("a", 5000, f"long {number}")
        queue.put("b", 10, f"short {number}")
    handed_out = [job.turn for job in iter(queue.next, None) if job]
    assert handed_out == ["long 0", "short 0", "short 1", "short 2"]


def test_turn_queue_mixes_short_and_long_jobs_by_cost() -> None:
    queue = TurnQueue(TWO)
    queue.put("a", 2000, "long 1")
    queue.put("a", 2000, "long 2")
    for number in range(3):
        queue.put("b", 900, f"short {number}")
    assert order_of(queue) == ["long 1", "short 0", "short 1", "short 2", "long 2"]


def test_turn_queue_bounds_the_queued_cost_of_all_tenants() -> None:
    queue = TurnQueue(ONE)
    for tenant in ("a", "b", "c"):
        queue.put(tenant, 3000, tenant)
    with pytest.raises(ServerOverloaded):
        queue.put("d", 1001, "d")
    queue.put("d", 1000, "d")
    order_of(queue)
    # No job waits, so no entry of a tenant is kept.
    assert not queue._waiting_of


def test_turn_queue_bounds_the_queued_cost() -> None:
    queue = TurnQueue(ONE)
    # A single job may wait at any cost.
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


def test_turn_queue_counts_a_job_from_the_long_cost_on_as_long() -> None:
    queue = TurnQueue(TWO)
    queue.put("a", TWO.long_cost, "long 1")
    queue.put("a", TWO.long_cost, "long 2")
    assert queue.next()
    assert queue.next() is None


def test_turn_queue_counts_only_queued_jobs_of_a_tenant() -> None:
    queue = TurnQueue(ONE)
    queue.put("a", 4000, "runs")
    queue.put("a", 1000, "waits")
    assert queue.next()
    queue.put("a", 4000, "fills the tenant's half")
    with pytest.raises(ServerOverloaded):
        queue.put("a", 1, "one more")


def test_turn_queue_forgets_tenants_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.turns, "_MAX_TENANTS", 2)
    queue = TurnQueue(ONE)
    for tenant in ("served much", "b", "c"):
        queue.put(tenant, 500, tenant)
        order_of(queue)
    queue.put("b", 1, "b")
    queue.put("served much", 1, "forgotten")
    assert order_of(queue) == ["forgotten", "b"]


def test_turn_queue_remembers_the_tenants_seen_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.turns, "_MAX_TENANTS", 2)
    queue = TurnQueue(ONE)
    for tenant in ("a", "b", "a", "c"):
        queue.put(tenant, 500, tenant)
        order_of(queue)
    queue.put("a", 1, "a")
    queue.put("b", 1, "forgotten")
    assert order_of(queue) == ["forgotten", "a"]


@given(st.integers(1, 3), st.lists(st.one_of(st.integers(1, 2000), st.none()), max_size=60))
def test_turn_queue_never_runs_more_than_it_has_places(places: int, steps: list[int | None]) -> None:
    """A step is the cost of a new job, or None for the end of the oldest running job."""
    queue = TurnQueue(Capacity(places, long_places=max(1, places - 1), long_cost=1000, waiting_cost=10**9))
    running: list[Any] = []
    waiting = 0
    for cost in steps:
        if cost is not None:
            queue.put("a", cost, None)
            waiting += 1
        elif running:
            queue.done(running.pop(0))
        while (job := queue.next()) is not None:
            running.append(job)
            waiting -= 1
        assert len(running) <= places
        assert sum(job.cost >= 1000 for job in running) <= max(1, places - 1)
        # No place is lost: if no job runs, no job waits.
        assert running or not waiting


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=30, max_size=60))
def test_turn_queue_gives_equal_shares_while_all_wait(jobs: list[tuple[str, int]]) -> None:
    queue = TurnQueue(Capacity(places=1, long_places=1, long_cost=10**9, waiting_cost=10**9))
    left = Counter(tenant for tenant, _ in jobs)
    for tenant, cost in jobs:
        queue.put(tenant, cost, tenant)
    served: defaultdict[str, float] = defaultdict(float)
    while min(left[tenant] for tenant in left) > 0 and (job := queue.next()) is not None:
        served[job.tenant] += job.cost
        left[job.tenant] -= 1
        queue.done(job)
    # One tenant is ahead of another by at most one job of each.
    assert max(served[tenant] for tenant in left) - min(served[tenant] for tenant in left) <= 100


class Gate:
    """Jobs that end when the test says so."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Future[str]] = {}

    def start(self, name: str) -> asyncio.Future[str]:
        self.began.append(name)
        self._ends[name] = asyncio.get_running_loop().create_future()
        return self._ends[name]

    def end(self, name: str) -> None:
        self._ends[name].set_result(name)

    def fail(self, name: str) -> None:
        self._ends.pop(name).set_exception(KeyError(name))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(turns: FairTurns, gate: Gate, name: str) -> asyncio.Task[str]:
    return asyncio.create_task(turns.run(name[0], 1, lambda: gate.start(name)))


async def test_fair_turns_return_the_result_of_the_job() -> None:
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
    # The cancelled job held no place, so none is free.
    assert gate.began == ["a"]
    gate.end("a")
    await settled()
    assert gate.began == ["a", "c"]


@pytest.mark.parametrize("moment", range(6))
async def test_fair_turns_lose_no_turn_whenever_its_owner_leaves(moment: int) -> None:
    turns, gate = FairTurns(ONE), Gate()
    tasks = [run(turns, gate, name) for name in ("a", "b", "c")]
    await settled()
    gate.end("a")
    # At one of these moments, the owner has got its turn but has not run since.
    for _ in range(moment):
        await asyncio.sleep(0)
    tasks[1].cancel()
    await settled()
    if "b" in gate.began:
        gate.end("b")
        await settled()
    assert tasks[1].cancelled()
    assert gate.began[-1] == "c"
    gate.end("c")
    assert await tasks[2] == "c"
    # The place is free, and no job is kept.
    assert await turns.run("d", 1, lambda: asyncio.sleep(0, "ran")) == "ran"
    assert not any(isinstance(value, set) and value for value in vars(turns).values())


async def test_fair_turns_free_the_room_of_a_cancelled_job() -> None:
    turns, gate = FairTurns(ONE), Gate()
    running = run(turns, gate, "a")
    await settled()
    large = asyncio.create_task(turns.run("b", 9_000, lambda: gate.start("b")))
    await settled()
    large.cancel()
    await settled()
    other = asyncio.create_task(turns.run("c", 9_000, lambda: gate.start("c")))
    await settled()
    for name, task in (("a", running), ("c", other)):
        gate.end(name)
        assert await task == name


async def test_fair_turns_look_at_the_error_of_a_job_nobody_waits_for() -> None:
    turns, gate = FairTurns(ONE), Gate()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    abandoned = run(turns, gate, "a")
    await settled()
    abandoned.cancel()
    await settled()
    gate.fail("a")
    del abandoned
    await settled()
    gc.collect()
    assert complaints == []


async def test_fair_turns_hold_the_place_of_a_job_nobody_waits_for() -> None:
    turns, gate = FairTurns(ONE), Gate()
    abandoned, waiting = run(turns, gate, "a"), run(turns, gate, "b")
    await settled()
    abandoned.cancel()
    await settled()
    # A thread cannot be stopped, so it holds its place until it ends.
    assert gate.began == ["a"]
    gate.end("a")
    await settled()
    gate.end("b")
    assert await waiting == "b"


async def test_fair_turns_free_the_place_of_a_job_that_is_cancelled() -> None:
    turns = FairTurns(ONE)
    cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turns.run("a", 1, lambda: cancelled)
    await settled()
    assert await turns.run("a", 1, lambda: asyncio.sleep(0, "ran")) == "ran"

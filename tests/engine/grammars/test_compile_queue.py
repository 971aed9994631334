"""The order of compilations: turns between tenants, CPU budgets, and refusals with the expected wait."""

from __future__ import annotations

import pytest

from tokka.engine.grammars.compile_queue import BUDGET_S, MAX_QUEUED, REFILL, WAIT_S, CompileQueue

NOW = 1000.0


def queue_of(processes: int, *jobs: str) -> CompileQueue[str]:
    """Return a queue of jobs; a job's first letter is its tenant."""
    queue: CompileQueue[str] = CompileQueue(processes)
    for job in jobs:
        queue.add(job[0], job)
    return queue


def finish(queue: CompileQueue[str], tenant: str, cpu_s: float, now_s: float = NOW) -> None:
    queue.finish(tenant, cpu_s=cpu_s, held_s=cpu_s, now_s=now_s)


def order_of(queue: CompileQueue[str], cpu_s: float = 0.0) -> list[str]:
    """Run all jobs one after another; return them in order."""
    order = []
    while (job := queue.start(NOW)) is not None:
        order.append(job)
        finish(queue, job[0], cpu_s)
    return order


def spend(queue: CompileQueue[str], tenant: str, cpu_s: float, now_s: float = NOW) -> None:
    queue.add(tenant, f"{tenant}-spends")
    assert queue.start(now_s) == f"{tenant}-spends"
    finish(queue, tenant, cpu_s, now_s)


def test_tenants_take_turns() -> None:
    assert order_of(queue_of(1, "a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_as_many_jobs_run_as_there_are_processes() -> None:
    queue = queue_of(2, "a1", "a2", "a3")
    assert [queue.start(NOW) for _ in range(3)] == ["a1", "a2", None]
    finish(queue, "a", 0.01)
    assert queue.start(NOW) == "a3"


def test_tenant_over_its_budget_goes_behind_the_others() -> None:
    queue = queue_of(1)
    spend(queue, "a", BUDGET_S)
    for job in ("a1", "b1", "b2", "b3"):
        queue.add(job[0], job)
    assert order_of(queue) == ["b1", "b2", "b3", "a1"]


def test_tenants_over_their_budgets_take_turns() -> None:
    queue = queue_of(1)
    spend(queue, "a", BUDGET_S)
    spend(queue, "b", BUDGET_S)
    for job in ("a1", "a2", "b1", "b2"):
        queue.add(job[0], job)
    assert order_of(queue) == ["a1", "b1", "a2", "b2"]


def test_tenants_over_their_budgets_never_hold_the_last_process() -> None:
    queue = queue_of(2)
    spend(queue, "a", BUDGET_S)
    spend(queue, "b", BUDGET_S)
    for job in ("a1", "a2", "b1"):
        queue.add(job[0], job)
    assert [queue.start(NOW), queue.start(NOW)] == ["a1", None]
    queue.add("c", "c1")
    assert queue.start(NOW) == "c1"
    finish(queue, "a", 0.0)
    assert queue.start(NOW) == "b1"


def test_one_process_serves_a_tenant_over_its_budget() -> None:
    queue = queue_of(1)
    spend(queue, "a", 10 * BUDGET_S)
    queue.add("a", "a1")
    assert queue.start(NOW) == "a1"


def test_budget_comes_back_with_time() -> None:
    queue = queue_of(1)
    spend(queue, "a", BUDGET_S + 1)
    queue.add("a", "a1")
    queue.add("b", "b1")
    back_s = NOW + 1 / REFILL
    assert queue.start(back_s - 0.1) == "b1"
    finish(queue, "b", 0.0, back_s - 0.1)
    queue.add("b", "b2")
    assert queue.start(back_s + 0.1) == "a1"


def test_tenant_with_its_whole_budget_is_forgotten() -> None:
    queue = queue_of(1)
    for number in range(100):
        spend(queue, f"t{number}", 0.001, NOW + number)
    assert list(queue._accounts) == ["t99"]


def test_removed_job_is_not_run() -> None:
    queue = queue_of(1, "a1", "a2", "b1")
    queue.remove("a", "a1")
    queue.remove("b", "b1")
    queue.remove("b", "unknown")
    assert order_of(queue) == ["a2"]


def test_idle_queue_refuses_nobody() -> None:
    queue = queue_of(1)
    spend(queue, "a", 100.0)
    assert queue.wait_s("a", NOW) == 0
    assert queue.refused_for_s("a", NOW) is None


def test_tenant_with_too_many_queued_jobs_is_refused() -> None:
    queue = queue_of(1, *(f"a{number}" for number in range(MAX_QUEUED)))
    assert queue.refused_for_s("a", NOW) is not None
    assert queue.refused_for_s("b", NOW) is None
    queue.start(NOW)
    assert queue.refused_for_s("a", NOW) is None


def test_job_without_a_chance_is_refused_with_its_expected_wait() -> None:
    queue = queue_of(1)
    for _ in range(40):
        # Each compilation takes a second.
        spend(queue, "a", 1.0)
    queue.add("a", "a-runs")
    queue.start(NOW)
    accepted = 0
    while queue.refused_for_s("a", NOW) is None:
        queue.add("a", f"a{accepted}")
        accepted += 1
    assert accepted == WAIT_S
    assert queue.refused_for_s("a", NOW) == pytest.approx(WAIT_S + 1, abs=0.1)
    # A tenant within its budget goes before all of them.
    assert queue.wait_s("b", NOW) == pytest.approx(1, abs=0.1)


def test_expected_wait_counts_one_job_a_round_of_other_tenants() -> None:
    queue = queue_of(1, "b1", "b2", "b3", "c1")
    alone_s = queue_of(1, "b1").wait_s("a", NOW)
    assert queue.wait_s("a", NOW) == pytest.approx(2 * alone_s)


def test_expected_wait_over_the_budget_counts_all_jobs_within_it() -> None:
    queue = queue_of(1)
    spend(queue, "a", BUDGET_S)
    one_s = queue_of(1, "b1").wait_s("c", NOW)
    for job in ("b1", "b2", "b3"):
        queue.add("b", job)
    assert queue.wait_s("a", NOW) == pytest.approx(3 * one_s)

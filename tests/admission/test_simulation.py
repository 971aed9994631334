"""The policy on a simulated engine with the speed of a GPU: goodput at any load, bursts, fairness, memory.

The tests send thousands of virtual requests. Except for the time of a decision, the figures depend only on the
decisions, so they are the same on every machine.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.admission.simulation import (
    TARGETS,
    SimulatedRequest,
    Simulation,
    StepModel,
    mixed,
    poisson,
    simulation,
    trace,
)
from tokka.admission.policy import Bounds
from tokka.admission.queue import OUTPUT_COST
from tokka.admission.targets import Targets
from tokka.engine_facts import ModelInfo

# Requests per second of the mixed load that the engine can serve within the targets. Found by search, with a policy
# that knows all lengths and refuses as few requests as possible.
CAPACITY = 19.7
FROM_S, TO_S = 10.0, 70.0


def loaded(sim: Simulation, load: Iterable[SimulatedRequest]) -> list[SimulatedRequest]:
    """Run the load; return the ended requests that arrived while it was steady, between FROM_S and TO_S."""
    sim.add(load)
    sim.run(TO_S + 40)
    return [request for request in sim.done if FROM_S <= request.at_s < TO_S]


def share(part: Iterable[object], whole: list[SimulatedRequest]) -> float:
    return sum(map(bool, part)) / max(1, len(whole))


def served(requests: Iterable[SimulatedRequest]) -> list[SimulatedRequest]:
    return [request for request in requests if request.refusal is None]


def refused_late(requests: list[SimulatedRequest]) -> float:
    late = (r.refused_s is not None and r.refused_s - r.at_s > 0.02 for r in requests)
    return share(late, requests)


# -- bursts and probes


@pytest.mark.parametrize(("requests", "prompt_tokens"), [(30, 60), (60, 600), (200, 100), (20, 2000)])
def test_burst_after_a_minute_of_probes_is_served(requests: int, prompt_tokens: int) -> None:
    sim = simulation(TARGETS)
    sim.add(SimulatedRequest(float(second), prompt_tokens=10, tokens=1, most_tokens=1) for second in range(60))
    sim.add(SimulatedRequest(60.5, prompt_tokens=prompt_tokens, tokens=100) for _ in range(requests))
    sim.run(120.0)
    assert all(request.is_good() for request in sim.done)
    assert len(sim.done) == 60 + requests


def test_burst_is_the_first_that_a_fresh_server_sees() -> None:
    sim = simulation(TARGETS)
    # One second of load at 60 % of the engine's capacity, in one moment.
    sim.add(at_once(mixed(0.6 * CAPACITY, 1.0, seed=5)))
    sim.run(60.0)
    assert not any(request.refusal for request in sim.done)


def at_once(load: list[SimulatedRequest]) -> list[SimulatedRequest]:
    for request in load:
        request.at_s = 0.0
    return load


class Returning(Simulation):
    """Refused requests come back once, at the time of their Retry-After."""

    def finished(self, request: SimulatedRequest) -> None:
        if request.refusal and request.priority == 0:
            at_s = self.now_s + math.ceil(request.refusal.retry_after_s or 0.0)
            self.add([SimulatedRequest(at_s, request.tenant, request.prompt_tokens, request.tokens, priority=1)])


@pytest.mark.parametrize(("requests", "prompt_tokens", "tokens"), [(150, 1000, 100), (600, 100, 200), (800, 20, 64)])
def test_retry_after_comes_true_after_a_burst(requests: int, prompt_tokens: int, tokens: int) -> None:
    sim = simulation(TARGETS, kind=Returning)
    sim.add(SimulatedRequest(0.0, prompt_tokens=prompt_tokens, tokens=tokens) for _ in range(20))
    sim.add(SimulatedRequest(20.0, prompt_tokens=prompt_tokens, tokens=tokens) for _ in range(requests))
    sim.run(300.0)
    back = [request for request in sim.done if request.priority]
    assert len(back) > requests / 3
    assert len(served(back)) >= 0.95 * len(back)
    # The last request does not come back much later than the engine needs for all of them.
    model = sim.model
    work_s = requests * (prompt_tokens * model.per_prompt_token_s + tokens * model.seconds_of(256, 0) / 256)
    assert max(request.at_s for request in back) <= 20 + 1.3 * work_s + 2.0


# -- load below and above capacity


@pytest.mark.parametrize("most_tokens", [None, 1024], ids=["known", "unknown"])
@pytest.mark.parametrize(("load", "most_refused"), [(0.5, 0.0), (0.8, 0.015)])
def test_hardly_anybody_is_refused_below_capacity(load: float, most_refused: float, most_tokens: int | None) -> None:
    requests = loaded(simulation(TARGETS), mixed(load * CAPACITY, TO_S, seed=3, most_tokens=most_tokens))
    assert share((request.refusal for request in requests), requests) <= most_refused
    assert share((request.is_good() for request in requests), requests) >= 0.97


@pytest.mark.parametrize("most_tokens", [None, 1024], ids=["known", "unknown"])
@pytest.mark.parametrize("load", [1.2, 2.0, 5.0])
def test_goodput_does_not_collapse_above_capacity(load: float, most_tokens: int | None) -> None:
    requests = loaded(simulation(TARGETS), mixed(load * CAPACITY, TO_S, seed=3, most_tokens=most_tokens))
    good = [request for request in requests if request.is_good()]
    assert len(good) / (TO_S - FROM_S) >= 0.85 * CAPACITY
    assert len(good) >= 0.96 * len(served(requests))
    assert refused_late(requests) < 0.01


def test_goodput_does_collapse_without_targets() -> None:
    # The load of the test above, without targets.
    requests = loaded(simulation(Targets(), bounds=Bounds(10_000)), mixed(2 * CAPACITY, TO_S, seed=3))
    assert share((request.is_good() for request in requests), requests) < 0.1


@pytest.mark.parametrize("noise", [{"noise": 0.1}, {"disturbed": 0.01}], ids=str)
def test_goodput_does_not_collapse_when_steps_vary(noise: dict[str, Any]) -> None:
    requests = loaded(simulation(TARGETS, StepModel(**noise)), mixed(2 * CAPACITY, TO_S, seed=3))
    assert share((request.is_good() for request in requests), requests) >= 0.75 / 2


def test_long_requests_are_served_as_often_as_short_ones() -> None:
    requests = loaded(simulation(TARGETS), mixed(2 * CAPACITY, TO_S, seed=3))
    by_work = sorted(requests, key=lambda request: request.prompt_tokens + 5 * request.tokens)
    quarter = len(by_work) // 4
    longest, shortest = by_work[-quarter:], by_work[:quarter]
    assert len(served(longest)) >= 0.75 * len(served(shortest))


def test_machine_that_becomes_slower_and_fast_again_is_followed() -> None:
    sim = simulation(TARGETS)
    sim.slow = [(30.0, 50.0, 2.0)]
    sim.add(mixed(1.5 * CAPACITY, 80.0, seed=3))
    sim.run(110.0)

    def goodput(from_s: float, to_s: float) -> float:
        return sum(r.is_good() for r in sim.done if from_s <= r.at_s < to_s) / (to_s - from_s)

    def kept(from_s: float, to_s: float) -> float:
        took = served(r for r in sim.done if from_s <= r.at_s < to_s)
        return share((request.is_good() for request in took), took)

    assert kept(33, 50) >= 0.93
    assert goodput(53, 75) >= 0.8 * CAPACITY


# -- tenants


def test_single_requests_beside_a_tenant_with_long_prompts_are_served() -> None:
    sim, dice = simulation(TARGETS), random.Random(3)
    sim.add(poisson(20.0, 80.0, 1, tenant="greedy", prompt_tokens=7000, tokens=200))
    sim.add(SimulatedRequest(5 + at + 0.5 * dice.random(), "single", 50, 20) for at in range(70))
    sim.run(120.0)
    single = [request for request in sim.done if request.tenant == "single"]
    waits = sorted(request.ttft_s for request in served(single))
    assert len(waits) == 70
    # Alone, a request takes 0.013 s to its first token. A full step takes 0.18 s.
    assert waits[int(0.95 * len(waits))] <= 0.013 + 2.5 * 0.18


class Closed(Simulation):
    """Each tenant always keeps the same number of requests open."""

    def finished(self, request: SimulatedRequest) -> None:
        pause_s = (request.refusal.retry_after_s or 1.0) if request.refusal else 0.0
        again = SimulatedRequest(
            self.now_s + pause_s, request.tenant, request.prompt_tokens, request.tokens, request.priority
        )
        self.add([again])


def closed(
    tenants: dict[str, SimulatedRequest],
    counts: dict[str, int],
    *,
    targets: Targets | None = None,
    most: int = 32,
    weights: dict[str, float] | None = None,
    until_s: float = 300.0,
) -> Closed:
    # A step takes as long as with the embedded model, so 32 places are few.
    sim = simulation(targets, StepModel(0.01, 0.0025, 0.0002, 512, most), weights=weights, kind=Closed)
    assert isinstance(sim, Closed)
    for name, like in tenants.items():
        for place in range(counts[name]):
            # Lengths vary, as in real use. Requests of equal length would always end together.
            tokens = max(1, like.tokens * (50 + 100 * place // counts[name]) // 100)
            sim.add([SimulatedRequest(0.01 * place, name, like.prompt_tokens, tokens)])
    sim.run(until_s)
    return sim


def of(sim: Simulation, tenant: str, after_s: float = 60.0) -> list[SimulatedRequest]:
    return served(r for r in sim.done if r.tenant == tenant and r.at_s > after_s)


def costs_of(sim: Simulation) -> dict[str, float]:
    """Return the cost of the tokens that each tenant was served, as the queue charges it."""
    costs = defaultdict[str, float](float)
    for request in sim.done:
        costs[request.tenant] += (request.prompt_tokens + OUTPUT_COST * request.got) if request.got else 0.0
    return costs


@pytest.mark.parametrize("most", [8, 32])
def test_equal_tenants_get_equal_shares_whatever_they_send(most: int) -> None:
    likes = {"many": SimulatedRequest(0), "few": SimulatedRequest(0), "long": SimulatedRequest(0, tokens=256)}
    sim = closed(likes, {"many": 200, "few": most, "long": 40}, most=most)
    costs = [costs_of(sim)[name] for name in likes]
    assert max(costs) / min(costs) < 1.1


def test_weights_divide_a_busy_engine() -> None:
    sim = closed({"a": SimulatedRequest(0), "b": SimulatedRequest(0)}, {"a": 100, "b": 100}, weights={"a": 3.0})
    costs = costs_of(sim)
    assert costs["a"] / costs["b"] == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("targets", [Targets(), Targets(1.0, 0.1)], ids=["no targets", "targets"])
def test_single_requests_beside_a_crowd_are_not_starved(targets: Targets) -> None:
    sim = closed(
        {"crowd": SimulatedRequest(0), "single": SimulatedRequest(0)}, {"crowd": 200, "single": 1}, targets=targets
    )
    single = of(sim, "single")
    waits = sorted(request.ttft_s for request in single)
    crowd = sorted(request.ttft_s for request in of(sim, "crowd"))
    assert len(single) > 25
    assert waits[len(waits) // 2] < 0.5
    # The crowd's requests wait for each other. With targets they are refused instead.
    assert targets.ttft_s or crowd[len(crowd) // 2] > 5.0


def test_short_prompts_and_long_ones_beside_each_other_are_served() -> None:
    likes = {"long": SimulatedRequest(0, prompt_tokens=4000), "short": SimulatedRequest(0, prompt_tokens=20)}
    sim = closed(likes, {"long": 20, "short": 60})
    assert len(of(sim, "long")) > 15
    assert len(of(sim, "short")) > 200
    costs = costs_of(sim)
    assert costs["long"] / costs["short"] == pytest.approx(1.0, rel=0.2)


# -- memory, traces, cost


class Blind(Simulation):
    """Hides the engine's memory from the policy."""

    def describe(self) -> ModelInfo:
        return replace(super().describe(), kv_tokens=None)


def test_memory_is_not_promised_twice() -> None:
    small = StepModel(kv_tokens=60_000)
    sim, blind = simulation(TARGETS, small), simulation(TARGETS, small, kind=Blind)
    requests = loaded(sim, mixed(CAPACITY, TO_S, seed=3))
    loaded(blind, mixed(CAPACITY, TO_S, seed=3))
    assert sim.preemptions <= 0.005 * len(requests)
    assert blind.preemptions > 50


@pytest.mark.parametrize("seed", range(3))
def test_bursty_trace_is_served_as_well_as_by_the_best_fixed_limit(seed: int) -> None:
    steered = simulation(TARGETS)
    steered.add(trace(14.0, 180.0, seed))
    steered.run(260.0)
    good = sum(request.is_good() for request in steered.done)
    best = max(good_with_limit(seed, limit, waiting) for limit in (64, 96, 128, 192) for waiting in (4, 16))
    assert good >= best


def good_with_limit(seed: int, limit: int, waiting: int) -> int:
    """Return the number of good requests without targets, with this many places and queued choices."""
    sim = simulation(Targets(), StepModel(max_running=limit), bounds=Bounds(waiting))
    sim.add(trace(14.0, 180.0, seed))
    sim.run(260.0)
    return sum(request.is_good() for request in sim.done)


def test_decisions_take_little_time_and_no_memory() -> None:
    sim = simulation(TARGETS)
    sim.add(mixed(1.5 * CAPACITY, 60.0, seed=3))
    sim.run(100.0)
    # Measured: 20 us on a quiet machine. This machine may be shared.
    assert sim.policy_s / sim.events < 200e-6
    policy = sim.policy
    assert not policy.queue
    assert (policy.batch.choices, len(policy.batch._tickets), len(policy.batch._kv_of)) == (0, 0, 0)
    assert len(policy.batch.lengths._of) <= 2 * 12

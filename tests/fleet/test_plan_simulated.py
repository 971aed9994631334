"""The plan over minutes and hours: load comes and goes, models take turns, updates roll."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.fleet.simulated_fleet import Client, Fleet, spec
from tokka.fleet.plan import Drain, Start


def clients(count: int, model: str = "a", **values: Any) -> list[Client]:
    return [Client(model, **values) for _ in range(count)]


def test_burst_adds_a_replica_and_idleness_removes_it() -> None:
    fleet = Fleet([spec(least=1, most=3)], gpus=3, clients=clients(14, service_s=2.0, from_s=60, until_s=120))
    fleet.run(60)
    assert fleet.count("a") == 1
    fleet.run(60)
    assert fleet.count("a") == 2
    fleet.run(180)
    assert fleet.count("a") == 1
    assert fleet.starts["a"] == 2


def test_second_replica_is_added_only_after_the_first() -> None:
    fleet = Fleet([spec(least=1, most=3)], gpus=3, clients=clients(60, service_s=2.0, from_s=60))
    fleet.run(240)
    starts_s = [at_s for at_s, action in fleet.actions if isinstance(action, Start)][1:]
    assert len(starts_s) == 2
    assert starts_s[1] - starts_s[0] >= fleet.load_s + 10


@pytest.mark.parametrize("count", [1, 3, 8, 14, 20])
def test_steady_load_keeps_the_number_of_replicas(count: int) -> None:
    fleet = Fleet([spec(least=1, most=4)], gpus=4, clients=clients(count, service_s=2.0, think_s=0.5))
    fleet.run(300)
    before = len(fleet.actions)
    fleet.run(3600)
    assert len(fleet.actions) == before


def test_model_starts_on_demand_and_stops_when_idle() -> None:
    [client] = only = [Client("a", from_s=10, until_s=60, holds=False)]
    fleet = Fleet([spec()], gpus=1, clients=only)
    fleet.run(9)
    assert not fleet.workers
    fleet.run(40)
    assert client.served
    fleet.run(100)
    assert not fleet.workers
    assert fleet.starts["a"] == 1


def test_slow_retry_finds_its_model_still_there() -> None:
    fleet = Fleet(
        [replace(spec(), idle_after_s=2.0)], gpus=1, clients=[Client("a", from_s=10, until_s=11, holds=False)]
    )
    fleet.run(100)
    assert fleet.count("a") == 1
    fleet.run(120)
    assert not fleet.workers


def test_two_busy_models_alternate_by_turns() -> None:
    both = [*clients(4, "a"), *clients(4, "b")]
    fleet = Fleet([spec("a"), spec("b")], gpus=1, clients=both)
    fleet.run(3600)
    # A turn takes 20 s to load, and 60 s or a little more to serve.
    assert 40 <= sum(fleet.starts.values()) <= 46
    assert abs(fleet.starts["a"] - fleet.starts["b"]) <= 1
    assert max(fleet.longest_wait_s.values()) <= 110
    served = {name: sum(one.served for one in both if one.model == name) for name in "ab"}
    assert 0.9 <= served["a"] / served["b"] <= 1.1


def test_three_busy_models_alternate_fairly() -> None:
    fleet = Fleet(
        [spec(name) for name in "abc"], gpus=1, clients=[*clients(4, "a"), *clients(4, "b"), *clients(4, "c")]
    )
    fleet.run(3600)
    assert max(fleet.starts.values()) - min(fleet.starts.values()) <= 1
    assert sum(fleet.starts.values()) <= 46


def test_short_pauses_do_not_swap_models_per_request() -> None:
    both = [Client("a", service_s=1, think_s=1), Client("b", service_s=1, think_s=1)]
    fleet = Fleet([spec("a"), spec("b")], gpus=1, clients=both)
    fleet.run(3600)
    assert sum(fleet.starts.values()) <= 46
    assert min(one.served for one in both) > 500


def test_refused_clients_get_their_turn() -> None:
    both = [Client("a", service_s=3), Client("b", service_s=1, think_s=30, holds=False)]
    fleet = Fleet([spec("a"), spec("b")], gpus=1, clients=both)
    fleet.run(3600)
    assert both[1].served >= 20
    assert sum(fleet.starts.values()) <= 90


def test_large_model_gets_its_turn_among_small_ones() -> None:
    fleet = Fleet(
        [spec("big", gpus=2), spec("a"), spec("b"), spec("c")],
        gpus=2,
        clients=[*clients(2, "a"), *clients(2, "b"), *clients(2, "c"), *clients(2, "big", from_s=100)],
    )
    fleet.run(3600)
    assert max(fleet.longest_wait_s.values()) <= 250
    assert min(fleet.starts.values()) >= 10


def test_unused_model_makes_room_at_once() -> None:
    fleet = Fleet([spec("a"), spec("b")], gpus=1, clients=[Client("a", until_s=30), Client("b", from_s=50)])
    fleet.run(90)
    assert fleet.longest_wait_s["b"] <= fleet.load_s + 2


def test_idle_models_stay_while_all_fit() -> None:
    fleet = Fleet([spec("a"), spec("b")], gpus=2, clients=[Client("a", think_s=10), Client("b", think_s=30)])
    fleet.run(3600)
    assert fleet.starts == {"a": 1, "b": 1}


def test_failing_model_backs_off_and_rests() -> None:
    fleet = Fleet([spec("a")], gpus=1, clients=[Client("a", until_s=1, holds=False)])
    fleet.load_s, fleet.broken = 0.5, {("a", "1")}
    fleet.run(1800)
    assert 5 <= fleet.starts["a"] <= 9
    assert fleet.histories["a"].backoff.failures == fleet.starts["a"]


def test_failing_model_leaves_the_room_to_others() -> None:
    fleet = Fleet([spec("a", least=1), spec("b")], gpus=1, clients=[Client("b")])
    fleet.broken = {("a", "1")}
    fleet.run(600)
    assert fleet.clients[0].served > 200


def test_update_that_cannot_surge_loses_one_replica_at_most() -> None:
    fleet = Fleet([spec(least=2, most=2)], gpus=2, clients=clients(2))
    fleet.run(60)
    fleet.specs["a"], fleet.broken = replace(fleet.specs["a"], revision="2"), {("a", "2")}
    fleet.run(600)
    assert [one.revision for one in fleet.ready("a")] == ["1"]


@pytest.mark.parametrize(("replicas", "gpus"), [(1, 1), (1, 2), (2, 2), (2, 3)])
def test_update_rolls_one_replica_at_a_time(replicas: int, gpus: int) -> None:
    fleet = Fleet([spec(least=replicas, most=replicas)], gpus=gpus, clients=clients(2, service_s=15))
    fleet.run(60)
    fleet.specs["a"] = replace(fleet.specs["a"], revision="2")
    least = replicas if gpus > replicas else replicas - 1
    for _ in range(600):
        fleet.run(0.5)
        assert len(fleet.ready("a")) >= least
        assert len(fleet.workers) <= min(gpus, replicas + 1)
    assert [one.revision for one in fleet.workers] == ["2"] * replicas
    assert fleet.starts["a"] == 2 * replicas
    assert sum(isinstance(one, Drain) for _, one in fleet.actions) == replicas


def test_failing_update_keeps_the_old_revision() -> None:
    fleet = Fleet([spec(least=1)], gpus=2, clients=clients(1))
    fleet.run(60)
    fleet.specs["a"], fleet.broken = replace(fleet.specs["a"], revision="2"), {("a", "2")}
    [old] = fleet.workers
    fleet.run(600)
    assert old in fleet.ready("a")
    assert 5 <= fleet.starts["a"] <= 14


def test_scaled_to_zero_sleeps_although_clients_ask() -> None:
    fleet = Fleet([spec(least=1)], gpus=1, clients=[Client("a", holds=False)])
    fleet.run(60)
    fleet.fixed["a"] = 0
    fleet.run(60)
    assert not fleet.workers
    del fleet.fixed["a"]
    fleet.run(60)
    assert fleet.count("a") == 1

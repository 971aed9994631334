"""Models of a gateway that start with their first request, grow with a burst, take turns, and sleep again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from tests.faults.streams import streaming
from tests.fleet.gateway import Gateway, fake, serving
from tests.program import eventually

LONG = {"prompt": "long", "max_tokens": 150, "ignore_eos": True}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with models on demand: `m`, and two of which only one fits into the memory."""
    turns: dict[str, Any] = {"idle_after": "60s", "resources": {"memory": "600MiB"}}
    models = {"m": fake(0, idle_after="1s"), "first": fake(0, **turns), "second": fake(0, **turns)}
    with serving(models, local={"memory": "1GiB"}) as gateway:
        yield gateway


def test_model_starts_on_demand_and_sleeps_when_idle(gateway: Gateway) -> None:
    assert not gateway.workers()
    with ThreadPoolExecutor(2) as pool:
        refused = list(pool.map(lambda _: gateway.ask(), range(2)))
    for answer in refused:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_starting"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
    (worker,) = gateway.ready()
    # Nobody stops it under a stream that is longer than `idle_after`.
    with streaming(gateway.program, [LONG]) as (stream,):
        pass
    assert stream.terminals() == ["length"]
    gateway.gone(worker)
    assert len(gateway.events("worker_starts", model="m")) == 1
    assert not worker.runs
    assert [line["reason"] for line in gateway.events("worker_drains", model="m")] == ["idle"]
    gateway.served()


def test_models_that_do_not_fit_together_take_turns(gateway: Gateway) -> None:
    gateway.served("first")
    (first,) = gateway.ready(model="first")
    with streaming(gateway.program, [{**LONG, "model": "first"}]) as (stream,):
        assert gateway.ask("second").status_code == 503
        gateway.served("second")
    assert stream.terminals() == ["length"]
    assert [line["reason"] for line in gateway.events("worker_drains", worker=first.id)] == ["room"]
    gateway.gone(first)
    gateway.served("first")
    assert len(gateway.events("worker_starts", model="first")) == 2
    assert len(gateway.events("worker_starts", model="second")) == 1


def test_burst_adds_a_replica_and_idleness_takes_it_away() -> None:
    model = fake(1, 2, "step_s=0.02", "max_running=1", idle_after="1s")
    with serving({"m": model}, patches={"tokka.fleet.scaling": "_SLOW_S = 1.0"}) as gateway:
        gateway.ready()
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(gateway.ask, max_tokens=50, ignore_eos=True) for _ in range(8)]
            gateway.ready(2)
        assert [answer.result().status_code for answer in answers] == [200] * 8
        # Requests that were queued before the second replica run on it: the first one ends one a second.
        assert min(late - early for early, late in pairwise(gateway.times("request_finished"))) < 0.9
        assert len(gateway.ready(1)) == 1
        assert gateway.events("worker_drains", model="m", reason="idle")
        assert gateway.ask().status_code == 200
        eventually(lambda: len(gateway.workers()) == 1, 10)

"""The runs of a session: their order, their seeds, and the model, key and process of each server."""

from __future__ import annotations

import pytest

from tokka.bench import session
from tokka.bench.plan import Plan
from tokka.bench.session import Load, Session
from tokka.bench.target import Target

TARGETS = (Target("http://a", "one", "key-a", {}, 1), Target("http://b", "two", "", {}, None))


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Collect the plans of the runs instead of running them. Each run reports one open request."""
    asked: list[Plan] = []

    def run(plan: Plan) -> tuple[list[object], dict[str, object]]:
        asked.append(plan)
        return [], {"cut": 1, "tenants": {}}

    monkeypatch.setattr(session, "run", run)
    return asked


def test_servers_take_turns_under_the_same_arrivals(plans: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("time.sleep", rests.append)
    told: list[str] = []
    base = Plan("", "", (), seed=7)
    loads = (Load(rate=1), Load(concurrency=2))
    lines = list(Session(TARGETS, loads, base, rounds=2).runs(told.append))
    ran = [(plan.url, plan.tenants[0].rate or plan.tenants[0].concurrency, plan.seed) for plan in plans]
    assert ran == [
        ("http://a", 1, 7), ("http://b", 1, 7), ("http://a", 2, 7), ("http://b", 2, 7),
        ("http://b", 1, 8), ("http://a", 1, 8), ("http://b", 2, 8), ("http://a", 2, 8),
    ]  # fmt: skip
    assert [(line["url"], line["load"], line["round"]) for line in lines[3:6]] == [
        ("http://b", "x2", 0),
        ("http://b", "1/s", 1),
        ("http://a", "1/s", 1),
    ]
    assert told[-1] == "run 8 of 8: x2 on http://a, 30 s"
    # A rest keeps the open requests of a run from burdening the next one. The last run needs no rest.
    assert len(rests) == 7


def test_each_server_has_its_own_model_key_and_process(plans: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    list(Session(TARGETS, (Load(rate=1),), Plan("", "", ()), rounds=1).runs(lambda _: None))
    assert [(plan.model, plan.tenants[0].key, plan.pid) for plan in plans] == [("one", "key-a", 1), ("two", "", None)]

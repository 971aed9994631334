"""Each rule of the plan, and its invariants under any input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fleet.simulated_fleet import GPU, TARGET_WAIT_S, State, after, check, spec
from tokka.fleet.backoff import Backoff
from tokka.fleet.plan import Drain, Plan, Start, plan
from tokka.fleet.scaling import Demand, History, ModelView, Replica, note_end, state_of
from tokka.fleet.spec import Resources

NOW_S = 1000.0
BUSY = Demand(idle_s=0.0)
QUIET = Demand(idle_s=30.0)
STATES: tuple[State, ...] = ("starting", "ready", "draining")


def replica(name: str = "w1", state: State = "ready", leases: int = 0, **values: Any) -> Replica:
    known = Replica(name, state, "1", GPU, leases, 300.0 if state == "ready" else 0.0)
    return replace(known, **values)


def made(*views: ModelView, gpus: int | None = 8, now_s: float = NOW_S, memory: int | None = None) -> Plan:
    capacity = None if gpus is None else Resources(gpus=gpus, memory_bytes=memory)
    result = plan(views, {"local": capacity}, TARGET_WAIT_S, now_s)
    check(views, {"local": capacity}, result, now_s)
    return result


def actions(*views: ModelView, gpus: int | None = 8, now_s: float = NOW_S) -> list[Start | Drain]:
    return list(made(*views, gpus=gpus, now_s=now_s).actions)


# -- between the minimum and the maximum


@pytest.mark.parametrize(
    ("least", "most", "demand", "fixed", "starts"),
    [
        (0, 1, Demand(), None, 0),
        (0, 1, Demand(waiting=1), None, 1),
        (0, 1, Demand(asked_s=3.0), None, 1),
        (0, 1, Demand(asked_s=200.0), None, 0),
        (0, 5, Demand(waiting=50), None, 1),
        (2, 5, Demand(), None, 2),
        (0, 1, Demand(waiting=1), 0, 0),
        (2, 5, Demand(waiting=1), 0, 0),
        (0, 1, Demand(), 3, 3),
    ],
)
def test_model_without_replicas_starts(
    least: int, most: int, demand: Demand, fixed: int | None, starts: int
) -> None:  # fmt: skip
    assert actions(ModelView(spec(least=least, most=most), (), demand, fixed)) == [Start("a")] * starts


def test_found_workers_count_as_starting() -> None:
    view = ModelView(spec(), (replica(state="starting"),), Demand(waiting=3, asked_s=0.0))
    assert actions(view) == []


def test_found_workers_above_the_minimum_stay() -> None:
    view = ModelView(spec(most=3), (replica("w1"), replica("w2")))
    assert actions(view) == []


@pytest.mark.parametrize(
    ("slow_s", "wait_s", "second", "starts"),
    [
        (10.0, 6.0, None, 1),
        (9.0, 6.0, None, 0),
        (10.0, 4.0, None, 0),
        (10.0, 6.0, replica("w2", "starting"), 0),
        (10.0, 6.0, replica("w2"), 0),
    ],
)
def test_long_wait_adds_one_replica(slow_s: float, wait_s: float, second: Replica | None, starts: int) -> None:
    replicas = (replica(leases=2), second) if second else (replica(leases=2),)
    history = History(wanted=len(replicas), slow_since_s=NOW_S - slow_s)
    view = ModelView(spec(most=2), replicas, Demand(wait_s=wait_s, idle_s=0.0), history=history)
    assert actions(view) == [Start("a")] * starts


@pytest.mark.parametrize(
    ("spare_s", "leases", "demand", "is_drained"),
    [
        (60.0, 0, Demand(idle_s=60.0), True),
        (59.0, 0, Demand(idle_s=60.0), False),
        # A short request between two calls.
        (60.0, 0, Demand(idle_s=10.0), False),
        (60.0, 1, BUSY, False),
        (60.0, 0, Demand(idle_s=60.0, waiting=1), False),
        (60.0, 0, Demand(idle_s=60.0, asked_s=61.0), False),
    ],
)
def test_idle_replica_stops(spare_s: float, leases: int, demand: Demand, is_drained: bool) -> None:
    history = History(wanted=1, spare_since_s=NOW_S - spare_s)
    view = ModelView(spec(), (replica(leases=leases),), demand, history=history)
    assert actions(view) == [Drain("w1", "idle")] * is_drained


def test_idle_stop_takes_the_youngest_unleased_replica() -> None:
    replicas = (replica("w1", leases=1, ready_s=5), replica("w2", ready_s=20), replica("w3", ready_s=10))
    view = ModelView(spec(least=1, most=3), replicas, BUSY, history=History(wanted=3, spare_since_s=NOW_S - 60))
    result = made(view)
    assert result.actions == (Drain("w3", "idle"),)
    assert actions(after(view, result)) == []


def test_idle_stop_ends_at_the_minimum() -> None:
    view = ModelView(spec(least=1), (replica(),), QUIET, history=History(wanted=1, spare_since_s=0.0))
    assert actions(view) == []


def test_idleness_never_stops_a_leased_replica() -> None:
    history = History(wanted=2, spare_since_s=0.0)
    leased = (replica("w1", leases=1), replica("w2", leases=1))
    assert actions(ModelView(spec(most=2), leased, BUSY, history=history)) == []
    old = (replica("w1", leases=1, revision="0"), replica("w2"))
    assert actions(ModelView(spec(most=2), old, BUSY, history=history), gpus=2) == [Drain("w2", "idle")]


def test_idleness_first_gives_up_a_start_that_is_due() -> None:
    view = ModelView(spec(most=2), (replica(),), Demand(), history=History(wanted=2, spare_since_s=0.0))
    result = made(view, gpus=1)
    assert result.actions == ()
    assert result.histories["a"].wanted == 1


def test_request_from_before_the_last_turn_does_not_count() -> None:
    view = ModelView(spec(), (), Demand(asked_s=10.0), history=History(wanted=0, seen_ready_s=NOW_S - 5))
    assert actions(view) == []
    assert actions(replace(view, history=History(wanted=0, seen_ready_s=NOW_S - 15))) == [Start("a")]


def test_scale_drains_leased_replicas_too() -> None:
    replicas = (replica("w1", leases=2), replica("w2", leases=1), replica("w3", leases=3))
    view = ModelView(spec(most=3), replicas, BUSY, fixed=1)
    assert actions(view) == [Drain("w2", "scale"), Drain("w1", "scale")]


def test_lower_maximum_drains_a_replica() -> None:
    view = ModelView(spec(most=1), (replica("w1", leases=1), replica("w2")), BUSY, history=History(wanted=2))
    assert actions(view) == [Drain("w2", "scale")]


# -- resources


@pytest.mark.parametrize(("gpus", "starts"), [(4, 2), (3, 1), (1, 0), (None, 3)])
def test_starts_stay_within_the_gpus(gpus: int | None, starts: int) -> None:
    assert actions(ModelView(spec(least=3, most=3, gpus=2)), gpus=gpus).count(Start("a")) == starts


def test_starts_stay_within_the_memory() -> None:
    need = Resources(memory_bytes=6)
    view = ModelView(replace(spec(least=3, most=3), resources=need), (replica(resources=need),))
    assert made(view, gpus=0, memory=13).actions == (Start("a"),)
    assert made(view, gpus=0, memory=None).actions == (Start("a"), Start("a"))


def test_draining_replicas_hold_their_resources() -> None:
    view = ModelView(spec(), (replica(state="draining"),), Demand(waiting=1))
    assert actions(view, gpus=1) == []
    assert actions(view, gpus=2) == [Start("a")]


def test_launchers_have_resources_of_their_own() -> None:
    views = [ModelView(spec("a", least=1)), ModelView(replace(spec("b", least=1), launcher="slurm"))]
    result = plan(views, {"local": Resources(gpus=1), "slurm": None}, TARGET_WAIT_S, NOW_S)
    assert result.actions == (Start("a"), Start("b"))


def test_minimum_starts_first_then_the_longest_waiting() -> None:
    def waits(name: str, seconds: float, least: int = 0) -> ModelView:
        history = History(wanted=1, blocked_since_s=NOW_S - seconds)
        return ModelView(spec(name, least=least), (), Demand(waiting=1), history=history)

    views = [waits("a", 5), waits("b", 20), waits("c", 1, least=1), waits("d", 9, least=1)]
    for gpus, started in ((1, "c"), (2, "cd"), (3, "bcd"), (4, "abcd")):
        assert actions(*views, gpus=gpus) == [Start(name) for name in started]


# -- turns


def waiting(name: str = "b", seconds: float = 0.0, gpus: int = 1, **values: Any) -> ModelView:
    history = History(wanted=1, blocked_since_s=NOW_S - seconds)
    return ModelView(spec(name, gpus=gpus, **values), (), Demand(waiting=1), history=history)


@pytest.mark.parametrize(
    ("least", "demand", "values", "is_drained"),
    [
        (0, QUIET, {}, True),
        (1, QUIET, {}, False),
        (0, Demand(idle_s=1.0), {}, False),
        (0, Demand(idle_s=30.0, waiting=1), {}, False),
        (0, BUSY, {"leases": 1}, False),
        (0, QUIET, {"state": "starting"}, False),
        # Its clients have not come back yet.
        (0, Demand(asked_s=20.0), {"ready_s": 5.0}, False),
        (0, Demand(asked_s=70.0), {"ready_s": 61.0}, True),
    ],
)
def test_unused_replica_makes_room(least: int, demand: Demand, values: dict[str, Any], is_drained: bool) -> None:
    other = ModelView(spec("a", least=least), (replica(**values),), demand)
    result = made(other, waiting(), gpus=1)
    assert list(result.actions) == [Drain("w1", "room")] * is_drained
    assert not result.yielding


def test_no_room_is_made_in_vain() -> None:
    other = ModelView(spec("a"), (replica(),), QUIET)
    result = made(other, waiting(gpus=3, seconds=100), gpus=2)
    assert not result.actions
    assert not result.yielding


def test_room_is_made_once() -> None:
    views = (ModelView(spec("a"), (replica("w1"),), QUIET), ModelView(spec("c"), (replica("w2"),), QUIET), waiting())
    result = made(*views, gpus=2)
    assert len(result.actions) == 1
    assert actions(*(after(view, result) for view in views), gpus=2) == []


def test_room_that_becomes_free_is_reserved() -> None:
    draining = ModelView(spec("a"), (replica(state="draining", resources=Resources(gpus=1)),), QUIET)
    assert actions(draining, waiting("b", 50, gpus=2), waiting("c", 10), gpus=2) == []
    busy = ModelView(spec("a"), (replica(leases=1),), BUSY)
    # While the room is in use, others run beside it.
    assert actions(busy, waiting("b", 50, gpus=2), waiting("c", 10), gpus=2) == [Start("c")]


@pytest.mark.parametrize(
    ("waited_s", "ready_s", "least", "yields"),
    [(60.0, 60.0, 0, True), (59.0, 300.0, 0, False), (300.0, 59.0, 0, False), (300.0, 300.0, 1, False)],
)
def test_busy_model_yields_after_its_turn(waited_s: float, ready_s: float, least: int, yields: bool) -> None:
    other = ModelView(spec("a", least=least), (replica(leases=3, ready_s=ready_s),), BUSY)
    result = made(other, waiting("b", waited_s), gpus=1)
    assert result.yielding == ({"w1"} if yields else set())
    assert not result.actions


def test_yielding_replica_is_drained_once_unused() -> None:
    other = ModelView(spec("a"), (replica(),), Demand(waiting=5, idle_s=0.0))
    result = made(other, waiting("b", 60), gpus=1)
    assert result.actions == (Drain("w1", "room"),)
    # Its requests wait for the next turn from now on.
    next_turn = made(after(other, result), after(waiting("b", 60), result), gpus=1, now_s=NOW_S + 1)
    assert next_turn.histories["a"].blocked_since_s == NOW_S + 1
    assert not next_turn.actions


def test_model_that_made_room_does_not_want_it_back() -> None:
    history = History(wanted=3, blocked_since_s=0.0)
    other = ModelView(spec("a", most=3), (replica("w1", leases=1), replica("w2")), BUSY, history=history)
    result = made(other, waiting(), gpus=2)
    assert result.actions == (Drain("w2", "room"),)
    assert result.histories["a"].wanted == 1
    assert result.histories["a"].blocked_since_s is None


def test_longest_unused_and_longest_served_models_make_room() -> None:
    recent = ModelView(spec("a"), (replica("w1", ready_s=100),), Demand(idle_s=10))
    long_ago = ModelView(spec("c"), (replica("w2", ready_s=200),), Demand(idle_s=20))
    assert actions(recent, long_ago, waiting(), gpus=2) == [Drain("w2", "room")]
    busy = [replace(view, replicas=(replace(view.replicas[0], leases=1),), demand=BUSY) for view in (recent, long_ago)]
    assert made(*busy, waiting(seconds=60), gpus=2).yielding == {"w2"}


def test_only_as_many_replicas_yield_as_needed() -> None:
    other = ModelView(spec("a", most=2), (replica("w1", leases=1), replica("w2", leases=1, ready_s=100)), BUSY)
    assert made(other, waiting("b", 60), gpus=2).yielding == {"w2"}


def test_further_replica_makes_no_busy_model_yield() -> None:
    history = History(wanted=2, blocked_since_s=0.0)
    slow = ModelView(spec("a", most=2), (replica("w1", leases=2),), Demand(wait_s=9, idle_s=0.0), history=history)
    busy = ModelView(spec("b"), (replica("w2", leases=1),), BUSY)
    result = made(slow, busy, gpus=2)
    assert not result.yielding
    assert not result.actions


@pytest.mark.parametrize(("idle_s", "is_drained"), [(30.0, False), (61.0, True)])
def test_further_replica_takes_only_long_unused_models(idle_s: float, is_drained: bool) -> None:
    slow = ModelView(spec("a", most=2), (replica("w1", leases=2),), BUSY, history=History(wanted=2))
    other = ModelView(spec("b"), (replica("w2"),), Demand(idle_s=idle_s))
    assert actions(slow, other, gpus=2) == [Drain("w2", "room")] * is_drained


# -- updates


@pytest.mark.parametrize(
    ("replicas", "gpus", "expected"),
    [
        ([replica("w1", leases=2)], 2, [Start("a")]),
        ([replica("w1", leases=2)], 1, [Drain("w1", "update")]),
        ([replica("w1", leases=2), replica("w2", "starting", revision="2")], 2, []),
        ([replica("w1", leases=2), replica("w2", revision="2", ready_s=1)], 2, [Drain("w1", "update")]),
        ([replica("w1", "draining"), replica("w2", revision="2", ready_s=1)], 2, []),
        ([replica("w1", "starting")], 2, []),
        # It would not fit even then.
        ([replica("w1", resources=Resources())], 0, []),
    ],
)
def test_update_of_one_replica(replicas: list[Replica], gpus: int, expected: list[Start | Drain]) -> None:
    view = ModelView(spec(least=1, revision="2"), tuple(replicas), BUSY, history=History(wanted=1))
    assert actions(view, gpus=gpus) == expected


def test_update_waits_while_an_old_replica_drains() -> None:
    replicas = (replica("w1", "draining"), replica("w2"), replica("w3", revision="2"))
    view = ModelView(spec(least=2, most=2, revision="2"), replicas, BUSY, history=History(wanted=2))
    assert actions(view) == []


def test_update_drains_the_least_used_old_replica() -> None:
    replicas = (replica("w1", leases=3), replica("w2", leases=1), replica("w3", revision="2", ready_s=0.5))
    view = ModelView(spec(least=2, most=2, revision="2"), replicas, BUSY, history=History(wanted=2))
    assert actions(view) == [Drain("w2", "update")]


def test_update_goes_on_without_room_to_grow() -> None:
    history = History(wanted=2, blocked_since_s=NOW_S - 60)
    view = ModelView(spec(most=2, revision="2"), (replica(leases=1),), BUSY, history=history)
    assert actions(view, gpus=1) == [Drain("w1", "update")]


def test_update_takes_no_replica_while_others_are_missing_or_fail() -> None:
    view = ModelView(spec(least=1, most=2, revision="2"), (replica(leases=1),), BUSY)
    assert actions(replace(view, history=History(wanted=2)), gpus=1) == []
    assert actions(replace(view, history=History(wanted=1, backoff=Backoff(1, 0.0))), gpus=1) == []


def test_update_uses_the_resources_of_the_old_replica() -> None:
    view = ModelView(spec(least=1, gpus=1, revision="2"), (replica(resources=Resources(gpus=2)),), BUSY)
    assert actions(view, gpus=2) == [Drain("w1", "update")]


def test_update_to_zero_drains_both_revisions() -> None:
    replicas = (replica("w1"), replica("w2", "starting", revision="2"))
    view = ModelView(spec(revision="2"), replicas, BUSY, fixed=0)
    assert {one.worker for one in actions(view) if isinstance(one, Drain)} == {"w1", "w2"}


# -- failures


def test_backoff_doubles_up_to_a_minute() -> None:
    history, delays = History(), []
    for _ in range(2000):
        history = note_end(history, 3.0, NOW_S)
        delays.append(history.backoff.not_before_s - NOW_S)
    assert delays[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert delays[-1] == 60
    assert note_end(history, 60.0, NOW_S).backoff == Backoff()


def test_no_start_during_the_backoff() -> None:
    history = note_end(History(), 0.0, NOW_S)
    view = ModelView(spec(least=1), history=history)
    assert actions(view, now_s=NOW_S + 0.9) == []
    assert actions(view, now_s=NOW_S + 1) == [Start("a")]


def test_one_start_at_a_time_after_a_failure() -> None:
    history = History(wanted=3, backoff=Backoff(1, NOW_S - 1))
    view = ModelView(spec(least=3, most=3), history=history)
    assert actions(view) == [Start("a")]
    assert actions(replace(view, replicas=(replica(state="starting"),))) == []


@pytest.mark.parametrize(("ready_s", "failures"), [(59.0, 4), (60.0, 0)])
def test_a_minute_of_readiness_resets_the_backoff(ready_s: float, failures: int) -> None:
    view = ModelView(spec(), (replica(ready_s=ready_s),), history=History(wanted=1, backoff=Backoff(4, 0.0)))
    assert made(view).histories["a"].backoff.failures == failures


def test_healthy_replica_does_not_hide_a_failing_one() -> None:
    view = ModelView(spec(least=2, most=2), (replica(),), history=History(wanted=2, backoff=Backoff(4, NOW_S + 9)))
    assert made(view).histories["a"].backoff.failures == 4


@pytest.mark.parametrize(
    ("states", "wanted", "failures", "state"),
    [
        ([], 0, 0, "asleep"),
        ([], None, 0, "asleep"),
        ([], 1, 0, "starting"),
        (["starting"], 1, 0, "starting"),
        (["starting"], 1, 2, "failed"),
        ([], 0, 2, "failed"),
        (["ready", "starting"], 2, 2, "ready"),
        (["draining"], 0, 0, "draining"),
        (["draining", "starting"], 1, 0, "starting"),
    ],
)
def test_state_of_a_model(states: list[State], wanted: int | None, failures: int, state: str) -> None:
    replicas = tuple(replica(str(number), one) for number, one in enumerate(states))
    history = History(wanted=wanted, backoff=Backoff(failures))
    assert state_of(ModelView(spec(), replicas, history=history)) == state


# -- any input

times = st.one_of(st.none(), st.floats(0, NOW_S))
histories = st.builds(
    History,
    wanted=st.one_of(st.none(), st.integers(0, 4)),
    slow_since_s=times,
    spare_since_s=times,
    blocked_since_s=times,
    seen_ready_s=st.floats(0, NOW_S),
    backoff=st.builds(Backoff, st.integers(0, 3), st.floats(NOW_S - 5, NOW_S + 5)),
)
demands = st.builds(
    Demand,
    waiting=st.integers(0, 2),
    wait_s=st.floats(0, 20),
    idle_s=st.sampled_from([0.0, 1.0, 30.0, 100.0, math.inf]),
    asked_s=st.one_of(st.none(), st.floats(0, 300)),
)


@st.composite
def fleets(draw: st.DrawFn) -> list[ModelView]:
    views = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        least = draw(st.integers(0, 2))
        known = spec(name, least=least, most=draw(st.integers(max(1, least), 3)), gpus=draw(st.integers(0, 2)))
        replicas = tuple(
            Replica(
                f"{name}{number}",
                state := draw(st.sampled_from(STATES)),
                draw(st.sampled_from("01")),
                Resources(gpus=draw(st.integers(0, 2))),
                draw(st.integers(0, 2)) if state != "starting" else 0,
                draw(st.floats(0, 200)) if state != "starting" else 0.0,
            )
            for number in range(draw(st.integers(0, 4)))
        )
        fixed = draw(st.one_of(st.none(), st.integers(0, 3)))
        views.append(ModelView(known, replicas, draw(demands), fixed, draw(histories)))
    return views


@settings(max_examples=500, deadline=None)
@given(fleets(), st.one_of(st.none(), st.integers(0, 6)))
def test_invariants_hold_for_any_fleet(views: list[ModelView], gpus: int | None) -> None:
    result = made(*views, gpus=gpus)
    again = [after(view, result) for view in views]
    # Nothing starts twice.
    assert not [one for one in actions(*again, gpus=gpus) if isinstance(one, Start)]

"""A busy event loop limits the running choices; a burst or a quick loop does not."""

from __future__ import annotations

import itertools
import math

from tokka.admission.loop_room import LoopRoom, LoopTime
from tokka.admission.policy import AdmissionPolicy, Bounds, Decision
from tokka.admission.targets import Targets
from tokka.admission.ticket import Ticket
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.step_costs import StepCosts

TTFT_S = 1.0


def after(
    room: LoopRoom, late_s: float, times: int, choices: int = 200, busy: float = 0.9, ttft_s: float = TTFT_S
) -> float:
    for _ in range(times):
        room.observe(LoopTime(late_s, busy), choices, 512, ttft_s)
    return room.most_choices


def test_quick_loop_limits_nothing() -> None:
    assert after(LoopRoom(), 0.002, 1000) == math.inf


def test_short_burst_of_lateness_limits_nothing() -> None:
    room = LoopRoom()
    after(room, 0.2, 3)
    assert after(room, 0.0, 30) == math.inf


def test_pause_of_the_process_limits_nothing() -> None:
    room = LoopRoom()
    after(room, 3600.0, 1)
    assert room.hops_s < TTFT_S
    assert after(room, 0.0, 30) == math.inf


def test_lasting_lateness_lowers_the_limit_step_by_step() -> None:
    room = LoopRoom()
    limits = [after(room, 0.1, 1) for _ in range(60)]
    assert limits[0] == math.inf
    assert 0 < limits[-1] < 100
    assert all(later <= earlier for earlier, later in itertools.pairwise(limits))


def test_loop_that_others_on_the_machine_make_late_limits_nothing() -> None:
    room = LoopRoom()
    assert after(room, 0.1, 60, busy=0.1) == math.inf
    assert room.hops_s > 0.3


def test_at_least_one_choice_runs_on_the_slowest_loop() -> None:
    assert after(LoopRoom(), 5.0, 1000, choices=1) == 1


def test_limit_goes_when_the_loop_is_quick_again() -> None:
    room = LoopRoom()
    after(room, 0.1, 40)
    assert after(room, 0.0, 100) == math.inf


def test_loop_limits_nothing_without_a_target() -> None:
    assert after(LoopRoom(), 1.0, 100, ttft_s=math.inf) == math.inf


def late_policy(late_s: float, looks: int) -> tuple[AdmissionPolicy, float]:
    """Return a policy with one place, taken for about 0.6 s more, whose looks came late; and the time."""
    made = AdmissionPolicy(Bounds(8), Targets(ttft_s=TTFT_S))
    costs = StepCosts(fixed_s=0.1)
    made.resize(ModelInfo(4096, 256, "test", "", False, 1, costs=costs), 0.0)
    made.arrive(Ticket("a", 1, 0.0, 10, most_tokens=6, is_exact=True), 0.0)
    for number in range(looks):
        made.observe(EngineStats(costs=costs), 0.01 * number, LoopTime(late_s, 0.9))
    return made, 0.2


def answer(made: AdmissionPolicy, now_s: float) -> Decision | None:
    decisions = made.arrive(Ticket("a", 1, now_s, 1, most_tokens=10, is_exact=True), now_s)
    return decisions[0] if decisions else None


def test_time_in_the_loop_counts_towards_the_first_token_target() -> None:
    made, now_s = late_policy(0.0, 5)
    assert answer(made, now_s) is None
    made, now_s = late_policy(0.1, 5)
    decision = answer(made, now_s)
    assert decision is not None
    assert decision.refusal is not None

"""The watchdog: signs of life, and its patience with idle, busy and stopped engines. Time is simulated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.engine.supervision.watchdog import BUSY_PATIENCE, STOPPED_PATIENCE, Activity, Observation, Stall, Watchdog

PATIENCE_S = 20.0
LOOK_S = 0.5


class Engine:
    """A simulated engine. The watchdog looks at it every half second."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.watchdog = Watchdog(PATIENCE_S, self.now_s)
        self.steps = 0
        self.cpu_s = 5.0
        self.verdict: Stall | None = None

    def live(
        self,
        seconds: float,
        *,
        steps_per_s: float = 0.0,
        unfinished: int = 1,
        awaits_answer: bool = False,
        cores: float = 0.0,
        stopped: tuple[int, ...] = (),
        look_s: float = LOOK_S,
    ) -> float | None:
        """Advance the time. Return the seconds until the verdict; None if there was none."""
        began_s, done = self.now_s, 0.0
        while self.verdict is None and self.now_s - began_s < seconds:
            self.now_s += look_s
            done += steps_per_s * look_s
            self.cpu_s += cores * look_s
            activity = Activity(self.cpu_s, stopped) if self.watchdog.needs_activity else None
            observation = Observation(self.steps + int(done), unfinished, 0, awaits_answer, activity)
            self.verdict = self.watchdog.observe(observation, self.now_s)
        self.steps += int(done)
        return self.now_s - began_s if self.verdict else None


def test_an_engine_that_steps_lives() -> None:
    assert Engine().live(3600, steps_per_s=30, cores=2) is None


def test_an_engine_with_nothing_to_do_lives() -> None:
    assert Engine().live(3600, unfinished=0) is None


def test_idle_engine_with_work_stalls_after_the_patience() -> None:
    engine = Engine()
    engine.live(60, steps_per_s=30, cores=2)
    assert engine.live(60) == pytest.approx(PATIENCE_S, abs=1)
    assert engine.verdict is not None
    assert engine.verdict.reason == "stalled"
    assert "no step" in str(engine.verdict)


@pytest.mark.parametrize("cores", [0.1, 1, 2, 64])
def test_a_long_prefill_or_a_compilation_is_no_stall(cores: float) -> None:
    engine = Engine()
    engine.live(10, steps_per_s=30, cores=2)
    assert engine.live(PATIENCE_S * (BUSY_PATIENCE - 1), cores=cores) is None
    assert engine.live(60, steps_per_s=30, cores=2) is None


def test_a_step_that_computes_for_ever_ends_as_well() -> None:
    engine = Engine()
    assert engine.live(10_000, cores=1) == pytest.approx(PATIENCE_S * BUSY_PATIENCE, abs=1)


def test_step_that_stops_computing_gets_the_usual_patience() -> None:
    engine = Engine()
    engine.live(60, cores=1)
    assert engine.live(60) == pytest.approx(PATIENCE_S, abs=1)


def test_process_stopped_by_a_signal_gets_a_quarter_of_the_patience() -> None:
    engine = Engine()
    engine.live(10, steps_per_s=30)
    assert engine.live(60, stopped=(4711,)) == pytest.approx(PATIENCE_S * STOPPED_PATIENCE, abs=1)
    assert "4711" in str(engine.verdict)


def test_a_worker_that_was_stopped_counts_even_while_another_spins() -> None:
    assert Engine().live(60, stopped=(4711,), cores=1) == pytest.approx(PATIENCE_S * STOPPED_PATIENCE, abs=1)


def test_a_call_without_an_answer_is_a_death_of_an_idle_engine() -> None:
    engine = Engine()
    assert engine.live(60, unfinished=0, awaits_answer=True) == pytest.approx(PATIENCE_S, abs=1)
    assert engine.verdict is not None
    assert engine.verdict.reason == "unresponsive"


def test_steps_excuse_a_call_that_waits() -> None:
    assert Engine().live(600, steps_per_s=2, awaits_answer=True, cores=2) is None


def test_an_answer_does_not_excuse_work_that_stands_still() -> None:
    engine = Engine()
    for answers in range(1000):
        engine.now_s += LOOK_S
        engine.verdict = engine.watchdog.observe(Observation(0, 1, answers, False, None), engine.now_s)
        if engine.verdict:
            break
    assert engine.verdict is not None
    assert engine.verdict.reason == "stalled"


def test_a_machine_that_was_suspended_is_no_stall() -> None:
    engine = Engine()
    engine.live(5)
    assert engine.live(3600, look_s=3600) is None
    assert engine.live(5, steps_per_s=30) is None


def test_processes_are_looked_at_only_when_something_is_odd() -> None:
    engine = Engine()
    engine.live(60, steps_per_s=10)
    assert not engine.watchdog.needs_activity
    engine.live(2)
    assert engine.watchdog.needs_activity


@given(st.lists(st.tuples(st.floats(0.1, 15), st.booleans()), max_size=30))
def test_silences_shorter_than_the_patience_never_kill(silences: list[tuple[float, bool]]) -> None:
    engine = Engine()
    for seconds, computes in silences:
        assert engine.live(seconds, cores=float(computes)) is None
        assert engine.live(1, steps_per_s=5, cores=1) is None

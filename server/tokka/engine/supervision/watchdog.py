"""Decides from observations whether the engine still works. Pure code that takes the time as an argument.

An engine can freeze, wedge or wait for ever while all of its own flags look healthy. Three observations distinguish
that from a long prefill, a compilation or a slow machine:

- It makes no step while it has work, or does not answer a call.
- Its processes use CPU meanwhile, or not: an engine that waits for ever uses none, one that prefills or compiles does.
- A signal has stopped one of its processes: waiting does not help then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["stalled", "unresponsive"]
# Factor on the patience for an engine that uses CPU: it may be in a very long step or in an endless loop.
BUSY_PATIENCE = 10
# Factor on the patience for a stopped process. A process in state T does not continue by itself; the remaining
# patience lets an operator pause one briefly.
STOPPED_PATIENCE = 0.25
# CPU use from which an engine counts as busy, in cores. Waiting uses none; a compilation or a step uses a core or more.
_BUSY_CORES = 0.05
# Maximum seconds that a gap between two looks counts. Longer gaps are pauses of the server (a suspended machine).
_LONGEST_TICK_S = 2.0
# Seconds of silence that are normal, since steps and answers take time. Well below the settings' minimum patience.
_ODD_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Activity:
    """CPU time of the engine's processes since their start, in seconds, and the pids that a signal has stopped."""

    cpu_s: float
    stopped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """One observation of the engine."""

    steps: int
    unfinished: int
    # Calls that it has answered, and whether one has no answer yet.
    answers: int = 0
    awaits_answer: bool = False
    # Read only if the engine is silent, because it costs a walk over the process table.
    activity: Activity | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """The verdict, and its grounds."""

    reason: Reason
    silent_s: float
    idle_s: float
    stopped: tuple[int, ...]

    def __str__(self) -> str:
        silence = "no step with work to do" if self.reason == "stalled" else "no answer to a call"
        state = (
            f", processes stopped by a signal: {self.stopped}"
            if self.stopped
            else f", CPU idle seconds: {self.idle_s:.0f}"
        )
        return f"{silence} for {self.silent_s:.0f} s{state}"


class Watchdog:
    """Watches one engine from the watchdog's creation on. `observe` returns the verdict once there is one."""

    def __init__(self, patience_s: float, now_s: float) -> None:
        self._patience_s = patience_s
        self._seen_s = now_s
        self._last = Observation(0, 0)
        # Seconds without a step, without an answer, and without CPU use.
        self._without_step_s = 0.0
        self._without_answer_s = 0.0
        self._idle_s = 0.0

    @property
    def needs_activity(self) -> bool:
        """Whether the engine has been silent so long that the next look needs the processes' activity."""
        return max(self._without_step_s, self._without_answer_s) >= _ODD_AFTER_S

    def observe(self, observation: Observation, now_s: float) -> Stall | None:
        """Record one observation; return the verdict if the engine has been silent for too long."""
        tick_s = min(now_s - self._seen_s, _LONGEST_TICK_S)
        last, self._last, self._seen_s = self._last, observation, now_s
        steps = observation.steps != last.steps
        answers = steps or observation.answers != last.answers
        self._without_step_s = 0.0 if steps or not observation.unfinished else self._without_step_s + tick_s
        self._without_answer_s = 0.0 if answers or not observation.awaits_answer else self._without_answer_s + tick_s
        self._idle_s = 0.0 if _computes(last.activity, observation.activity, tick_s) else self._idle_s + tick_s
        silences: tuple[tuple[Reason, float], ...] = (
            ("stalled", self._without_step_s),
            ("unresponsive", self._without_answer_s),
        )
        for reason, silent_s in silences:
            idle_s = min(self._idle_s, silent_s)
            if self._is_over(silent_s, idle_s, observation.activity):
                return Stall(reason, silent_s, idle_s, observation.activity.stopped if observation.activity else ())
        return None

    def _is_over(self, silent_s: float, idle_s: float, activity: Activity | None) -> bool:
        if activity and activity.stopped and silent_s >= self._patience_s * STOPPED_PATIENCE:
            return True
        return idle_s >= self._patience_s or silent_s >= self._patience_s * BUSY_PATIENCE


def _computes(before: Activity | None, now: Activity | None, tick_s: float) -> bool:
    return before is not None and now is not None and now.cpu_s - before.cpu_s >= _BUSY_CORES * tick_s

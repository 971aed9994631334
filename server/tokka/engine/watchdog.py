"""Does the engine still work? Decided from what is seen of it, in pure code that takes the time as an argument.

An engine can be alive and dead: frozen, wedged, waiting for what never comes, with every flag of its own green. Three
things tell that apart from a long prefill, a compilation or a slow machine:

- no step while it has work, or no answer to a call;
- whether its processes compute meanwhile: one that waits for ever uses no CPU, one that prefills or compiles does;
- whether one of them was stopped by a signal: no amount of patience helps then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["stalled", "unresponsive"]
# An engine that computes may be in a step of any length, or in a loop without end; this often the patience tells.
BUSY_PATIENCE = 10
# A process in state T does not go on by itself; the rest is for whoever pauses one for a moment.
STOPPED_PATIENCE = 0.25
# Of one core. Waiting costs nothing; a compilation or a step takes a core or more.
_BUSY_CORES = 0.05
# Longer gaps between two looks are our own pauses (a suspended machine), not the engine's.
_LONGEST_TICK_S = 2.0
# So long nothing is odd: steps and answers take their time. Well below the least patience the settings allow.
_ODD_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Activity:
    """What the engine's processes have done: CPU time since their start, and the pids a signal has stopped."""

    cpu_s: float
    stopped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at the engine."""

    steps: int
    unfinished: int
    # Calls it has answered, and whether one is waiting for its answer.
    answers: int = 0
    awaits_answer: bool = False
    # Read only when something is odd: it costs a walk over the process table.
    activity: Activity | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """The verdict, with what it rests on."""

    reason: Reason
    silent_s: float
    idle_s: float
    stopped: tuple[int, ...]

    def __str__(self) -> str:
        silence = "no step with work to do" if self.reason == "stalled" else "no answer to a call"
        state = f", processes stopped by a signal: {self.stopped}" if self.stopped else f", idle for {self.idle_s:.0f}"
        return f"{silence} for {self.silent_s:.0f} s{state}"


class Watchdog:
    """Looks at one engine from its readiness on. `see` gives the verdict, once there is one."""

    def __init__(self, patience_s: float, now_s: float) -> None:
        self._patience_s = patience_s
        self._seen_s = now_s
        self._last = Sight(0, 0)
        # Since the last sign of life of each kind, and how much of that, up to now, without computing.
        self._without_step_s = 0.0
        self._without_answer_s = 0.0
        self._idle_s = 0.0

    @property
    def is_odd(self) -> bool:
        """Whether the next look needs the processes' activity."""
        return max(self._without_step_s, self._without_answer_s) >= _ODD_AFTER_S

    def see(self, sight: Sight, now_s: float) -> Stall | None:
        """Take in one look; return the verdict if the engine has been silent for too long."""
        tick_s = min(now_s - self._seen_s, _LONGEST_TICK_S)
        last, self._last, self._seen_s = self._last, sight, now_s
        steps = sight.steps != last.steps
        answers = steps or sight.answers != last.answers
        self._without_step_s = 0.0 if steps or not sight.unfinished else self._without_step_s + tick_s
        self._without_answer_s = 0.0 if answers or not sight.awaits_answer else self._without_answer_s + tick_s
        self._idle_s = 0.0 if _computes(last.activity, sight.activity, tick_s) else self._idle_s + tick_s
        silences: tuple[tuple[Reason, float], ...] = (
            ("stalled", self._without_step_s),
            ("unresponsive", self._without_answer_s),
        )
        for reason, silent_s in silences:
            idle_s = min(self._idle_s, silent_s)
            if self._is_over(silent_s, idle_s, sight.activity):
                return Stall(reason, silent_s, idle_s, sight.activity.stopped if sight.activity else ())
        return None

    def _is_over(self, silent_s: float, idle_s: float, activity: Activity | None) -> bool:
        if activity and activity.stopped and silent_s >= self._patience_s * STOPPED_PATIENCE:
            return True
        return idle_s >= self._patience_s or silent_s >= self._patience_s * BUSY_PATIENCE


def _computes(before: Activity | None, now: Activity | None, tick_s: float) -> bool:
    return before is not None and now is not None and now.cpu_s - before.cpu_s >= _BUSY_CORES * tick_s

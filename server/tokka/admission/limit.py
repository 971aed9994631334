"""How many choices may run at once so that each goes on at the promised pace. Pure: the time is an argument.

In a batch every running choice gets a token each step, and a step takes longer the more of them run. So what one waits
for its next token, averaged over all that decode, is known at any moment: the time they spent decoding, divided by the
tokens they got. The limit follows it: up while it is well below the target and somebody wants to run, down when it
comes close.
"""

from __future__ import annotations

import math

# The part of the target that the average is steered to: the slowest request has to keep it, too. How far they lie apart
# depends on the machine and on what is asked, so this is learnt: up a little with each request that kept the target,
# down a lot with each that did not, which balances at one in fifty.
_FIRST_GOAL = 0.92
_LOWEST_GOAL, _HIGHEST_GOAL = 0.8, 0.96
_KEPT, _MISSED = 0.001, -0.05
# Around the goal nothing changes.
_BAND = 0.04
# What is older counts less: about as long as an answer takes, as its reader feels the average over it, with the prompts
# of others that were computed meanwhile.
_MEMORY_S = 2.0
# Between two changes; the second has to see something of what the first has done.
_PAUSE_S = 0.5
_FASTEST_GROWTH = 1.25
_FASTEST_CUT = 0.8
_FIRST = 16
# A batch of a few is about as fast as one alone: below that a target that cannot be kept would only idle the engine.
_LEAST = 4


class ConcurrencyLimit:
    """`tpot_s`: the target; None: no limit but the engine's own. Counts choices."""

    def __init__(self, tpot_s: float | None) -> None:
        self._tpot_s = tpot_s
        self.most = 1
        self._value = float(_FIRST)
        self._goal = _FIRST_GOAL
        self._decoding = 0
        self._running = 0
        self._seen_s = 0.0
        self._changed_s = 0.0
        # Choices times seconds spent decoding, and tokens that came of it; both fade.
        self._decode_s = 0.0
        self._tokens = 0.0
        self._was_full = False

    @property
    def value(self) -> int:
        return self.most if self._tpot_s is None else min(self.most, max(_LEAST, int(self._value)))

    def resize(self, most: int) -> None:
        """Set what the engine can run at the most."""
        self.most = most

    def started(self, choices: int) -> None:
        self._running += choices

    def ended(self, choices: int, now_s: float) -> None:
        self._advance(now_s)
        self._running -= choices

    def decodes(self, choices: int, now_s: float) -> None:
        """Note that so many choices more get tokens."""
        self._advance(now_s)
        self._decoding += choices

    def stops(self, choices: int, now_s: float) -> None:
        """Note that so many fewer do."""
        self._advance(now_s)
        self._decoding -= choices

    def produced(self, tokens: int) -> None:
        self._tokens += tokens

    def kept(self, tpot_s: float) -> None:
        """Learn from the pace at which a request that has ended got its tokens."""
        if self._tpot_s is not None:
            change = _KEPT if tpot_s <= self._tpot_s else _MISSED
            self._goal = max(_LOWEST_GOAL, min(_HIGHEST_GOAL, self._goal + change))

    @property
    def pace_s(self) -> float:
        """Seconds for a token, as those who decode felt it lately."""
        return self._decode_s / max(1.0, self._tokens)

    def look(self, wanted: bool, now_s: float) -> None:
        """Adapt if there is reason to. `wanted`: somebody was kept waiting, or sent away, for lack of room."""
        self._advance(now_s)
        # Only a limit that held others back has a reason to grow.
        self._was_full = self._was_full or (wanted and self._running >= self.value)
        # As many tokens as would say something at the target's pace, or the time in which they should have come.
        least = self._decoding + 1
        if (
            self._tpot_s is not None
            and now_s - self._changed_s >= _PAUSE_S
            and (self._tokens >= least or self._decode_s >= least * self._tpot_s)
        ):
            self._adapt(self.pace_s, self._tpot_s)
            self._changed_s, self._was_full = now_s, False

    def _adapt(self, tpot_s: float, target_s: float) -> None:
        goal_s = self._goal * target_s
        ratio = goal_s / max(tpot_s, 1e-6)
        if tpot_s > goal_s * (1 + _BAND):
            # What runs above the limit already is on its way out: cutting again would cut twice for one reason.
            if self._running <= self._value:
                self._value = max(_LEAST, self._value * max(_FASTEST_CUT, ratio))
        elif tpot_s < goal_s * (1 - _BAND) and self._was_full:
            self._value = min(float(self.most), max(self._value + 1, self._value * min(_FASTEST_GROWTH, ratio)))

    def _advance(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._seen_s)
        fade = math.exp(-passed_s / _MEMORY_S)
        self._decode_s = self._decode_s * fade + self._decoding * passed_s
        self._tokens *= fade
        self._seen_s = max(self._seen_s, now_s)

"""What those who run can still lose: pure bookkeeping, in seconds.

The slack of a running choice is how much later than predicted it may end and still have kept its pace from its first
token on. Decoding alone does not change it: with each step a token is got and its time has passed. A prompt that is
computed beside takes its own time from the slack of all who run.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any


class Slacks:
    """Sorted, with one debt that all share: a decision takes two searches, however many run. An owner whose length is
    not known has several slacks, one for each length that it may have."""

    def __init__(self) -> None:
        self._debt_s = 0.0
        # Slack plus the debt at the time it was noted.
        self._sorted: list[float] = []
        self._of: dict[Hashable, list[float]] = {}

    def add(self, owner: Hashable, slacks_s: Sequence[float]) -> None:
        self._of[owner] = [slack_s + self._debt_s for slack_s in slacks_s]
        for value in self._of[owner]:
            bisect.insort(self._sorted, value)

    def remove(self, owner: Hashable) -> None:
        """Forget an owner, known or not."""
        for value in self._of.pop(owner, ()):
            del self._sorted[bisect.bisect_left(self._sorted, value)]

    def renew(self, slacks_s: Mapping[Any, list[float]]) -> None:
        """Take these in place of all that was noted."""
        self._debt_s = 0.0
        self._of = dict(slacks_s)
        self._sorted = sorted(itertools.chain.from_iterable(slacks_s.values()))

    def spend(self, seconds: float) -> None:
        """Take this from everybody."""
        self._debt_s += seconds

    def broken_by(self, seconds: float) -> int:
        """Return how many slacks would be lost if this were taken."""
        return bisect.bisect_left(self._sorted, self._debt_s + seconds) - bisect.bisect_left(self._sorted, self._debt_s)

    def spare_s(self, broken: int) -> float:
        """Return what can be taken from everybody with at most so many slacks lost."""
        at = bisect.bisect_left(self._sorted, self._debt_s) + broken
        return self._sorted[at] - self._debt_s if at < len(self._sorted) else float("inf")

"""The slack of running choices: the seconds they can lose and still meet the TPOT target. Pure.

The slack of a choice is how much later than predicted it may end and still meet the target from its first token on.
Decoding alone does not change it: each step brings a token and takes that token's time. A prompt computed beside takes
its own time from the slack of all running choices.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any


class Slacks:
    """Sorted slacks with one common debt, so a decision takes two searches, however many choices run.

    An owner of unknown length has several slacks, one for each length that it may have.
    """

    def __init__(self) -> None:
        self._debt_s = 0.0
        # Each slack plus the debt at the time it was added.
        self._sorted: list[float] = []
        self._of: dict[Hashable, list[float]] = {}

    def add(self, owner: Hashable, slacks_s: Sequence[float]) -> None:
        self._of[owner] = [slack_s + self._debt_s for slack_s in slacks_s]
        for value in self._of[owner]:
            bisect.insort(self._sorted, value)

    def remove(self, owner: Hashable) -> None:
        """Forget an owner. An unknown owner has no effect."""
        for value in self._of.pop(owner, ()):
            del self._sorted[bisect.bisect_left(self._sorted, value)]

    def renew(self, slacks_s: Mapping[Any, list[float]]) -> None:
        """Replace all slacks."""
        self._debt_s = 0.0
        self._of = dict(slacks_s)
        self._sorted = sorted(itertools.chain.from_iterable(slacks_s.values()))

    def spend(self, seconds: float) -> None:
        """Take these seconds from every slack."""
        self._debt_s += seconds

    def broken_by(self, seconds: float) -> int:
        """Return how many slacks would be lost if these seconds were taken."""
        return bisect.bisect_left(self._sorted, self._debt_s + seconds) - bisect.bisect_left(self._sorted, self._debt_s)

    def spare_s(self, broken: int) -> float:
        """Return the seconds that can be taken from every slack with at most `broken` slacks lost."""
        at = bisect.bisect_left(self._sorted, self._debt_s) + broken
        return self._sorted[at] - self._debt_s if at < len(self._sorted) else float("inf")

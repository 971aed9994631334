"""A token bucket: so much a minute, all of it at once if it was saved up. Pure: the time is an argument."""

from __future__ import annotations

import math

# What floating point may be wrong by, after days of adding up.
_SLACK = 1e-6


class Bucket:
    def __init__(self, per_minute: int, now_s: float) -> None:
        self.capacity = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def remaining(self, now_s: float) -> int:
        return max(0, math.floor(self._fill(now_s) + _SLACK))

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return in how many seconds the bucket will hold this much; 0: it does now; infinite: it never will."""
        if amount > self.capacity:
            return math.inf
        missing = amount - self._fill(now_s)
        return 0.0 if missing <= _SLACK else missing * 60 / self.capacity

    def take(self, amount: float, now_s: float) -> None:
        """Take out; whoever has not asked `wait_s` before may bring it below zero."""
        self._level = self._fill(now_s) - amount

    def give_back(self, amount: float, now_s: float) -> None:
        self._level = min(self.capacity, self._fill(now_s) + amount)

    def reset_s(self, now_s: float) -> float:
        """Return in how many seconds the bucket will be full again."""
        return max(0.0, (self.capacity - self._fill(now_s)) * 60 / self.capacity)

    def _fill(self, now_s: float) -> float:
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        self._level = min(self.capacity, self._level + passed_s * self.capacity / 60)
        return self._level

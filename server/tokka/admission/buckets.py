"""A token bucket: it refills by one minute's amount a minute and holds no more. Pure: the time is an argument."""

from __future__ import annotations

import math

# Maximum floating-point error after days of additions.
_SLACK = 1e-6


class Bucket:
    """A bucket that starts full. A saved-up minute may be used at once."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.capacity = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def remaining(self, now_s: float) -> int:
        return max(0, math.floor(self._fill(now_s) + _SLACK))

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until the bucket holds `amount`: 0 if it does now, infinite if it never will."""
        if amount > self.capacity:
            return math.inf
        missing = amount - self._fill(now_s)
        return 0.0 if missing <= _SLACK else missing * 60 / self.capacity

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` out. Without asking `wait_s` first, the level may fall below zero."""
        self._level = self._fill(now_s) - amount

    def give_back(self, amount: float, now_s: float) -> None:
        self._level = min(self.capacity, self._fill(now_s) + amount)

    def reset_s(self, now_s: float) -> float:
        """Return the seconds until the bucket is full again."""
        return max(0.0, (self.capacity - self._fill(now_s)) * 60 / self.capacity)

    def _fill(self, now_s: float) -> float:
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        self._level = min(self.capacity, self._level + passed_s * self.capacity / 60)
        return self._level

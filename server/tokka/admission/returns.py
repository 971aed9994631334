"""When those who are sent away come back: one after the other, at the pace at which they can be served. Pure."""

from __future__ import annotations

from collections import deque

from tokka.errors import MAX_RETRY_AFTER_S

# Times closer together than this are one.
_TOGETHER_S = 0.1


class Returns:
    """A crowd that is told the same time comes back as a crowd."""

    def __init__(self) -> None:
        # When those who were sent away have been told to come back, and how many choices they have, in order.
        self._due: deque[tuple[float, int]] = deque()
        self._choices = 0
        # When the next one may come at the earliest.
        self._free_s = 0.0

    def choices(self, now_s: float) -> int:
        """Return how many choices have been told a time that is still to come: they take what ends first."""
        while self._due and self._due[0][0] <= now_s:
            self._choices -= self._due.popleft()[1]
        return self._choices

    def book(self, choices: int, after_s: float, cost_s: float, now_s: float) -> float:
        """Return in what time a request may come back that would find room after `after_s`, and that a busy server
        works on for `cost_s`: behind those who were told before."""
        most_s = now_s + MAX_RETRY_AFTER_S
        due_s = min(max(self._free_s, now_s + after_s), most_s)
        self._free_s = min(due_s + cost_s, most_s)
        if self._due and due_s - self._due[-1][0] < _TOGETHER_S:
            due_s_before, before = self._due.pop()
            self._due.append((due_s_before, before + choices))
        else:
            self._due.append((due_s, choices))
        self._choices += choices
        return due_s - now_s

    def forget(self) -> None:
        """Nobody need wait any more for those who were told."""
        self._due.clear()
        self._choices = 0
        self._free_s = 0.0

"""Spread the return times of refused requests by the rate at which the server can serve them. Pure."""

from __future__ import annotations

from collections import deque

from tokka.errors import MAX_RETRY_AFTER_S

# Seconds below which two return times are one.
_TOGETHER_S = 0.1


class Returns:
    """The return times given to refused requests: each request gets its own, so they do not all return at once."""

    def __init__(self) -> None:
        # Return times and numbers of choices, in order.
        self._due: deque[tuple[float, int]] = deque()
        self._choices = 0
        # Earliest time for the next request.
        self._free_s = 0.0

    def choices(self, now_s: float) -> int:
        """Return the choices with a return time still to come. They take the room that is freed first."""
        while self._due and self._due[0][0] <= now_s:
            self._choices -= self._due.popleft()[1]
        return self._choices

    def book(self, choices: int, after_s: float, cost_s: float, now_s: float) -> float:
        """Return the seconds after which a request should come back, behind the requests refused before.

        `after_s`: seconds until it would find room. `cost_s`: seconds that a busy server works on it.
        """
        most_s = now_s + MAX_RETRY_AFTER_S
        # design 6.2
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
        """Forget all return times: new requests need not wait for refused ones."""
        self._due.clear()
        self._choices = 0
        self._free_s = 0.0

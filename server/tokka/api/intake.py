"""Spreads a burst of requests, or of their clients' ends, over iterations of the event loop.

When hundreds of clients send in the same moment, the loop reads all their requests in one iteration, and starts all
their tasks in the next one. No running stream gets a token in between. The same happens when a proxy ends: all its
connections are lost at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

# Requests that may begin or end in one iteration. Each takes 0.1 to 0.5 ms, until it waits for the first time.
MOST = 32


class Intake:
    """Begins requests in the order of their arrival, at most `MOST` in each iteration."""

    def __init__(self) -> None:
        # Requests begun in this iteration.
        self._begun = 0
        # A dict, for its order: a connection is in it once.
        self._waiting: dict[Callable[[], None], None] = {}

    def begin(self, read: Callable[[], None]) -> bool:
        """Call `read`, which begins a request, now or in a later iteration. Return whether it was called."""
        if self._begun == MOST:
            self._waiting[read] = None
            return False
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next)
        self._begun += 1
        read()
        return True

    def leave(self, read: Callable[[], None]) -> None:
        """Forget a connection that waits, if it does."""
        self._waiting.pop(read, None)

    def _next(self) -> None:
        due = list(islice(self._waiting, MOST))
        self._begun = len(due)
        loop = asyncio.get_running_loop()
        for read in due:
            del self._waiting[read]
            # On its own, so that an error in one leaves the others alone.
            loop.call_soon(read)
        if due:
            loop.call_soon(self._next)

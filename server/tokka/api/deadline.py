"""Deadlines for clients. Delays of our own event loop do not count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Seconds of timer delay beyond which our event loop is at fault. The client then gets this much more time.
_HELD_UP_S = 1.0


class Deadline:
    """A deadline for a client. At most one is set at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, within_s: float, else_: Callable[[], None]) -> None:
        """Call `else_` after `within_s` seconds, unless the deadline is set again or cleared before."""
        self.clear()
        due_s = self._loop.time() + within_s
        self._timer = self._loop.call_at(due_s, self._fire, due_s, else_)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self, due_s: float, else_: Callable[[], None]) -> None:
        if self._loop.time() - due_s > _HELD_UP_S:
            # The loop was blocked, and it runs timers before it reads data that arrived meanwhile.
            self._timer = self._loop.call_later(_HELD_UP_S, else_)
        else:
            else_()

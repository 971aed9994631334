"""A time limit on a client, which a delay of our own does not use up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# A timer that is later than this, in seconds, tells of our loop, not of the client.
_HELD_UP_S = 1.0


class Deadline:
    """At most one limit at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, within_s: float, else_: Callable[[], None]) -> None:
        """Call `else_` after this time, unless the deadline is set anew or cleared before."""
        self.clear()
        due_s = self._loop.time() + within_s
        self._timer = self._loop.call_at(due_s, self._fire, due_s, else_)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self, due_s: float, else_: Callable[[], None]) -> None:
        if self._loop.time() - due_s > _HELD_UP_S:
            # The loop was held up, and runs its timers before it reads what has come meanwhile.
            self._timer = self._loop.call_later(_HELD_UP_S, else_)
        else:
            else_()

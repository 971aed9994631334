"""Who may run now: as many choices as the engine has room for; the others wait in turn, for a while; the rest is
refused. Everything refused here is refused before any work is done."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tokka.errors import Draining, RequestTimeout, ServerOverloaded

# Until drain rates are measured, an honest guess that keeps the clients' default back-off short.
RETRY_AFTER_S = 5


@dataclass(eq=False, slots=True)
class _Ticket:
    """A request that waits for its turn."""

    choices: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class AdmissionController:
    """Counts choices between admission and release. `max_running` follows the engine, once it is known."""

    def __init__(self, *, max_running: int, max_waiting: int, queue_timeout_s: float) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._running = 0
        self._waiting: deque[_Ticket] = deque()
        self._waiting_choices = 0
        self._open_requests = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def resize(self, max_running: int) -> None:
        """Set how many choices may run; what runs already stays."""
        self._max_running = max_running
        self._admit_waiting()

    @property
    def is_draining(self) -> bool:
        return self._draining

    @property
    def open_requests(self) -> int:
        """Requests admitted or waiting."""
        return self._open_requests

    @property
    def waiting_choices(self) -> int:
        return self._waiting_choices

    @contextlib.asynccontextmanager
    async def admit(self, choices: int, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Hold room for a request of so many choices, waiting for it if need be.

        Raises Draining or ServerOverloaded at once, RequestTimeout after `timeout_s` or the queue's own limit.
        A request larger than the bound runs when nothing else does, or no one could ever serve it.
        """
        self.check_open()
        self._open_requests += 1
        self._idle.clear()
        try:
            await self._take_turn(choices, timeout_s)
            try:
                yield
            finally:
                self._running -= choices
                self._admit_waiting()
        finally:
            self._open_requests -= 1
            if not self._open_requests:
                self._idle.set()

    def check_open(self) -> None:
        """Raise Draining if nothing new is taken any more."""
        if self._draining:
            raise _draining()

    def start_draining(self) -> None:
        """Refuse from now on what is new; what runs or waits may finish."""
        self._draining = True

    def refuse_waiting(self) -> None:
        """End the waiting of all who wait: the drain's time is over."""
        while self._waiting:
            ticket = self._next()
            if not ticket.turn.done():
                ticket.turn.set_exception(_draining())

    async def idle(self) -> None:
        """Wait until nothing runs or waits."""
        await self._idle.wait()

    async def _take_turn(self, choices: int, timeout_s: float | None) -> None:
        if not self._waiting and self._fits(choices):
            self._running += choices
            return
        if self._waiting_choices + choices > self._max_waiting:
            raise ServerOverloaded(
                f"The server is busy: {self._running} choices run and {self._waiting_choices} wait, of at most "
                f"{self._max_running} and {self._max_waiting}. Retry in {RETRY_AFTER_S} s.",
                retry_after_s=RETRY_AFTER_S,
            )
        ticket = _Ticket(choices)
        self._waiting.append(ticket)
        self._waiting_choices += choices
        limit_s = self._queue_timeout_s if timeout_s is None else min(timeout_s, self._queue_timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                await ticket.turn
        except TimeoutError:
            self._give_up(ticket)
            raise RequestTimeout(
                f"The request waited {limit_s:g} s for its turn and was given up. Retry in {RETRY_AFTER_S} s, "
                "or allow it a longer timeout.",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        except asyncio.CancelledError:
            self._give_up(ticket)
            raise

    def _give_up(self, ticket: _Ticket) -> None:
        """Take a ticket back whose owner has left, also one whose turn came at that very moment."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._waiting_choices -= ticket.choices
        elif ticket.turn.done() and not ticket.turn.cancelled() and ticket.turn.exception() is None:
            self._running -= ticket.choices
            self._admit_waiting()

    def _admit_waiting(self) -> None:
        while self._waiting and self._fits(self._waiting[0].choices):
            ticket = self._next()
            if not ticket.turn.done():
                self._running += ticket.choices
                ticket.turn.set_result(None)

    def _next(self) -> _Ticket:
        ticket = self._waiting.popleft()
        self._waiting_choices -= ticket.choices
        return ticket

    def _fits(self, choices: int) -> bool:
        return not self._running or self._running + choices <= self._max_running


def _draining() -> Draining:
    return Draining("The server is shutting down. Retry in a few seconds.", retry_after_s=RETRY_AFTER_S)

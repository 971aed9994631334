"""Who may run now: a bound on the work accepted, and the draining state."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tokka.errors import Draining, ServerOverloaded

# Until drain rates are measured, an honest guess that keeps the clients' default back-off short.
RETRY_AFTER_S = 5


class AdmissionController:
    """Counts choices between admission and release. Everything it refuses is refused before any work is done."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._open_choices = 0
        self._open_requests = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def bound(self, max_open: int) -> None:
        """Set how many choices may be open; what is open already stays."""
        self._max_open = max_open

    @property
    def is_draining(self) -> bool:
        return self._draining

    @property
    def open_requests(self) -> int:
        return self._open_requests

    @contextmanager
    def admit(self, choices: int) -> Iterator[None]:
        """Hold room for a request of so many choices. Raises Draining or ServerOverloaded.

        A request larger than the bound runs when nothing else does, or no one could ever serve it.
        """
        if self._draining:
            raise Draining("The server is shutting down. Retry in a few seconds.", retry_after_s=RETRY_AFTER_S)
        if self._open_choices and self._open_choices + choices > self._max_open:
            raise ServerOverloaded(
                f"The server is busy with {self._open_choices} of at most {self._max_open} choices. "
                f"Retry in {RETRY_AFTER_S} s.",
                retry_after_s=RETRY_AFTER_S,
            )
        self._open_choices += choices
        self._open_requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open_choices -= choices
            self._open_requests -= 1
            if not self._open_requests:
                self._idle.set()

    def start_draining(self) -> None:
        """Refuse from now on what is new; what runs may finish."""
        self._draining = True

    async def idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

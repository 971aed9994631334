"""Limits the size and time of each request body, and the memory of all bodies together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope

from tokka.admission.memory import MemoryBudget, Share
from tokka.api.headers import header
from tokka.api.path_facts import facts_of
from tokka.errors import BodyTooLarge, SlowRequest

SLOWEST_BYTES_PER_S = 64 << 10


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """The limits of all bodies.

    `max_bytes`: returns the current maximum of one body. `bulk_bytes`: the least maximum where a body has many texts.
    """

    max_bytes: Callable[[], int]
    timeout_s: float
    memory: MemoryBudget
    bulk_bytes: int = 0

    def of(self, scope: Scope) -> LimitedBody:
        """Return the body of a request. Raises BodyTooLarge, ServerOverloaded for its declared length."""
        max_bytes = self.max_bytes()
        if self.bulk_bytes > max_bytes and facts_of(scope["path"]).is_bulk:
            max_bytes = self.bulk_bytes
        return LimitedBody(scope, max_bytes, self)


class LimitedBody:
    """One body while it is received."""

    __slots__ = ("_began_s", "_is_complete", "_max_bytes", "_received", "_timeout_s", "memory")

    def __init__(self, scope: Scope, max_bytes: int, limit: BodyLimit) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = limit.timeout_s
        self.memory = Share(limit.memory, scope["state"]["record"].tenant)
        self._began_s = asyncio.get_running_loop().time()
        self._received = 0
        self._is_complete = False
        declared = header(scope, b"content-length")
        if declared.isdigit():
            self._check(int(declared))

    def reader(self, receive: Receive) -> Receive:
        """Return a `receive` that raises BodyTooLarge, SlowRequest, ServerOverloaded beyond the limits."""

        async def receive_bounded() -> Message:
            if self._is_complete:
                # Only a disconnect can follow, at any time.
                return await receive()
            # A slow but steady upload is not an attack, so received bytes extend the deadline.
            deadline_s = self._began_s + self._timeout_s + self._received / SLOWEST_BYTES_PER_S
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                seconds = f"{deadline_s - self._began_s:.3g} s"
                raise SlowRequest(
                    f"The request body was not complete after {seconds}. Send it faster, or send a smaller one."
                ) from None
            self._is_complete = not message.get("more_body", False)
            self._received += len(message.get("body", b""))
            self._check(self._received)
            return message

        return receive_bounded

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise BodyTooLarge(
                f"The request body is larger than {self._max_bytes} bytes, the limit of this server. Send less."
            )
        self.memory.grow_to(size)

"""Where the pieces of a stream go: past the middleware, which reads none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from starlette.types import Receive, Send


class Wire(Protocol):
    """The body of a response that has begun and has no declared length."""

    @property
    def is_full(self) -> bool:
        """Whether written bytes still wait for the client."""
        ...

    def write(self, data: bytes) -> None:
        """Write a piece. Does nothing once the client is gone."""
        ...

    async def drain(self) -> None:
        """Return when the written bytes are on their way, or the client is gone."""
        ...

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """Call `on_gone` once the client is gone. None: no longer. Call this after the request's body was read."""
        ...


class AsgiWire:
    """The wire of any ASGI server. It sends only from a task, so it is always full."""

    is_full = True

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._written: list[bytes] = []
        self._watching: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        self._written.append(data)

    async def drain(self) -> None:
        written, self._written = self._written, []
        await self._send({"type": "http.response.body", "body": b"".join(written), "more_body": True})

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = None if on_gone is None else asyncio.create_task(self._wait(on_gone))

    async def _wait(self, on_gone: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        on_gone()

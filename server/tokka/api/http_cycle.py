"""One HTTP request and its response: uvicorn's cycle, with our own way to close the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Signal:
    """An event with one waiter or listener, for uvicorn's cycle. An asyncio.Event takes 0.8 kB per open stream."""

    __slots__ = ("_is_set", "_waiter", "listener")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None
        self.listener: Callable[[], None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.listener is not None:
            self.listener()

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> None:
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None


class Cycle(RequestResponseCycle):
    """uvicorn's request and response cycle, with our own way to close the connection. Implements `Wire`.

    `is_draining`: whether every response ends its connection. `close`: close once the client can have read the
    response; uvicorn closes at once, which resets the connection of a client that is still sending.
    """

    def __init__(self, *, is_draining: Callable[[], bool], close: Callable[[], None], **parts: Any) -> None:
        super().__init__(**parts)
        # uvicorn's cycle waits for it, and its protocol sets it, for a disconnect as well.
        self.message_event: Any
        transport = parts["transport"]
        self.transport: Any = SimpleNamespace(write=transport.write, is_closing=transport.is_closing, close=close)
        self._is_draining = is_draining
        self._until_close = False

    async def run_asgi(self, app: Any) -> None:
        self.scope["state"]["wire"] = self
        try:
            await super().run_asgi(app)
        finally:
            # The state refers to this cycle. Without it, the request needs no garbage collection.
            self.scope["state"].clear()

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        if not self.response_started:
            self._choose_framing(message)
        elif self._until_close:
            # uvicorn counts down to 0, which ends the response.
            self.expected_content_length = len(message.get("body", b""))
        return super().send(message)

    @property
    def is_full(self) -> bool:
        is_full: bool = self.flow.write_paused
        return is_full

    def write(self, data: bytes) -> None:
        if not self.disconnected:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked_encoding else data)

    async def drain(self) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        if on_gone is None:
            # The listener refers to this cycle.
            self.message_event.listener = None
            return

        def listener() -> None:
            if self.disconnected:
                on_gone()

        self.message_event.listener = listener
        # A long body may have paused the reading, without which no disconnect is noticed.
        self.flow.resume_reading()
        listener()

    def _choose_framing(self, message: Any) -> None:
        if message["status"] == 101:
            # The frames of another protocol follow, as they are.
            self.chunked_encoding = False
            return
        # A client that waits for `100 Continue` may send its body or omit it, so the next bytes are ambiguous.
        if self._is_draining() or (self.waiting_for_100_continue and self.more_body):
            self.keep_alive = False
        has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
        if self.scope["http_version"] == "1.0" and not has_length:
            # RFC 9112 6.1: HTTP/1.0 has no chunks, so the body ends with the connection.
            self._until_close = True
            self.chunked_encoding = False

"""One HTTP request and its response: uvicorn's cycle, with our own way to close the connection."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Cycle(RequestResponseCycle):
    """uvicorn's request and response cycle, with our own way to close the connection.

    `is_draining`: whether every response ends its connection. `close`: close once the client can have read the
    response; uvicorn closes at once, which resets the connection of a client that is still sending.
    """

    def __init__(self, *, is_draining: Callable[[], bool], close: Callable[[], None], **parts: Any) -> None:
        super().__init__(**parts)
        transport = parts["transport"]
        self.transport: Any = SimpleNamespace(write=transport.write, is_closing=transport.is_closing, close=close)
        self._is_draining = is_draining
        self._until_close = False

    async def run_asgi(self, app: Any) -> None:
        try:
            await super().run_asgi(app)
        finally:
            # The state refers to `send`, and so to this cycle. Without it, the request needs no garbage collection.
            self.scope["state"].clear()

    # Not a coroutine function, because it runs for every token.
    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        if not self.response_started:
            self._choose_framing(message)
        elif self._until_close:
            # uvicorn counts down to 0, which ends the response.
            self.expected_content_length = len(message.get("body", b""))
        return super().send(message)

    def _choose_framing(self, message: Any) -> None:
        # A client that waits for `100 Continue` may send its body or omit it, so the next bytes are ambiguous.
        if self._is_draining() or (self.waiting_for_100_continue and self.more_body):
            self.keep_alive = False
        has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
        if self.scope["http_version"] == "1.0" and not has_length:
            # RFC 9112 6.1: HTTP/1.0 has no chunks, so the body ends with the connection.
            self._until_close = True
            self.chunked_encoding = False

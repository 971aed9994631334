"""uvicorn's HTTP protocol with bounds on what a client may send and how long it may take, and errors in OpenAI's form.

uvicorn with httptools takes a header of any size: httptools collects a value before it calls back. So the bytes are
counted here, as they arrive, until the headers are complete. And it waits for ever: for a head, for the rest of a body
that was answered already, for a client that does not read.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokka.admission.policy import RETRY_AFTER_S
from tokka.api.access import OPEN_PATHS
from tokka.api.connections import Connections, Cut
from tokka.api.errors import body_of_error
from tokka.api.outbox import BatchedTransport, Outbox
from tokka.errors import ServerOverloaded, SlowRequest, TokkaError
from tokka.protocol.common import new_id

log = structlog.get_logger("tokka.http")

# How long a refused client may go on sending before the connection is closed.
_LINGER_S = 1.0
# A timer that is later than this tells of our loop, not of the client.
_HELD_UP_S = 1.0
# How much of a body is read to its end after it was refused, so that the connection can serve on, and for how long.
_MAX_UNREAD_BYTES = 16 << 20
_REST_S = 5.0


class HeadersTooLarge(TokkaError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request line and headers are larger than {limit} bytes, the limit of this server.")


class MalformedHttp(TokkaError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class BoundedProtocol(HttpToolsProtocol):
    # Of the subclass made by `bounded_protocol`.
    open_connections: Connections
    outbox: Outbox

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = self.open_connections.limits
        # Until a request has named one.
        self.url = b""
        self._head_bytes = 0
        self._in_head = True
        self._refused = False
        self._probes_only = False
        self._answered_bytes = 0
        self._silent_bytes = 0
        self._body_seen = False
        # The cycle whose answer is being written; `cycle` is the last one that was read.
        self._answering: Any = None
        # One for the head, or the rest of an answered body; one for what the client has to read.
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # -- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(BatchedTransport(transport, self.outbox))  # type: ignore[arg-type]
        match self.open_connections.opened(self):
            case "full":
                self._cut("refused")
                return
            case "probes_only":
                self._probes_only = True
        self._expect(self._limits.header_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.closed(self)
        self._expect_nothing()
        self._stop_write_timer()
        super().connection_lost(exc)
        # With requests in a pipeline, uvicorn tells only the last one.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def evict(self) -> None:
        self._cut("evicted")

    def shutdown(self) -> None:
        """End the connection as soon as its answer is out. What the client still owes is not waited for."""
        super().shutdown()
        owes_body = self.cycle is not None and not self._in_head
        if self.flow.write_paused or self.transport.get_write_buffer_size() or owes_body:
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    # -- reading

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
            super().data_received(data)
            self._check_head()
            return
        self._body_seen = False
        super().data_received(data)
        self._check_body(len(data))

    def _check_head(self) -> None:
        if not self._in_head or self._refused:
            return
        if self._head_bytes > self._limits.header_bytes:
            self._refuse(HeadersTooLarge(self._limits.header_bytes))
        elif self._head_bytes and self._read_timer is None:
            self._expect(self._limits.header_s, self._head_is_late)

    def _check_body(self, received: int) -> None:
        """Bound what follows a head: trailers, chunk extensions, and a body that has been answered already."""
        # httptools collects a trailer before it calls back, so no callback at all means that one is growing.
        self._silent_bytes = 0 if self._body_seen else self._silent_bytes + received
        if self.cycle is not None and self.cycle.response_complete:
            self._answered_bytes += received
        if self._silent_bytes > self._limits.header_bytes or self._answered_bytes > _MAX_UNREAD_BYTES:
            self._close()

    def on_body(self, body: bytes) -> None:
        self._body_seen = True
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come as headers, after the request has been judged by its own: they must not change it.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._expect_nothing()
        self.open_connections.is_busy(self)
        # A chunk that completes the headers may hold body bytes as well: the headers themselves decide.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.header_bytes:
            self._refuse(HeadersTooLarge(self._limits.header_bytes))
            return
        if self._probes_only and self.url.partition(b"?")[0].decode("latin-1") not in OPEN_PATHS:
            self.open_connections.on_cut("refused")
            message = f"The server has no room for another connection. Retry in {RETRY_AFTER_S} s."
            self._refuse(ServerOverloaded(message, retry_after_s=RETRY_AFTER_S))
            return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = self._answered_bytes = self._silent_bytes = 0
        self._expect_nothing()
        if self.cycle is not None and self.cycle.response_complete:
            self.open_connections.waits(self)

    # -- answering

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        elif self.cycle.response_complete:
            if self._in_head:
                self.open_connections.waits(self)
            else:
                self._expect(_REST_S, self._close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedHttp("The HTTP request is malformed."))

    def _refuse(self, error: TokkaError) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._expect_nothing()
        body = body_of_error(error, self.url.partition(b"?")[0].decode("latin-1"))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": new_id("req_"),
            **error.headers(),
            "connection": "close",
        }
        lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        # Closing at once would reset a client that still sends, and the answer would be lost with it.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._expect(_LINGER_S, self._close)

    # -- time

    def _expect(self, within_s: float, else_: Any) -> None:
        self._expect_nothing()
        due_s = self.loop.time() + within_s
        self._read_timer = self.loop.call_at(due_s, self._fire, due_s, else_)

    def _fire(self, due_s: float, else_: Any) -> None:
        if self.loop.time() - due_s > _HELD_UP_S:
            # It is we who are late: the loop runs its timers before it reads what has come meanwhile.
            self._read_timer = self.loop.call_later(_HELD_UP_S, else_)
        else:
            else_()

    def _expect_nothing(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_s, self._cut, "write_timeout")

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _head_is_late(self) -> None:
        if self._head_bytes and not self.transport.is_closing():
            self.open_connections.on_cut("header_timeout")
            seconds = f"{self._limits.header_s:g} s"
            self._refuse(SlowRequest(f"The request's headers were not complete after {seconds}, the limit here."))
        else:
            self._cut("header_timeout")

    def _close(self) -> None:
        """Close, in bounded time: a client that does not read would keep the last bytes, and the connection, for
        ever."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._start_write_timer()

    def _cut(self, reason: Cut) -> None:
        """Drop the connection with whatever is on its way."""
        self.open_connections.on_cut(reason)
        log.debug("connection_cut", reason=reason, client=self.client)
        self.transport.abort()


def bounded_protocol(connections: Connections) -> type[BoundedProtocol]:
    """Return a protocol class whose instances keep to the limits and share the registry."""
    return type("BoundedProtocol", (BoundedProtocol,), {"open_connections": connections, "outbox": Outbox()})

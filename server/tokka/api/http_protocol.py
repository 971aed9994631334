"""uvicorn's HTTP protocol with bounds on headers and trailers, and errors in OpenAI's form.

uvicorn with httptools takes a header of any size: httptools collects a value before it calls back. So the bytes are
counted here, as they arrive, until the headers are complete.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokka.errors import TokkaError

# How long a refused client may go on sending before the connection is closed.
_LINGER_S = 1.0
# How much of a body is read to its end after it was refused, so that the connection can serve on.
_MAX_UNREAD_BYTES = 16 << 20


class HeadersTooLarge(TokkaError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request line and headers are larger than {limit} bytes, the limit of this server.")


class MalformedHttp(TokkaError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class BoundedProtocol(HttpToolsProtocol):
    max_header_bytes = 64 << 10

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._refused = False
        self._answered_bytes = 0
        self._silent_bytes = 0
        self._body_seen = False

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
        if self._in_head and self._head_bytes > self.max_header_bytes:
            self._refuse(HeadersTooLarge(self.max_header_bytes))

    def _check_body(self, received: int) -> None:
        """Bound what follows a head: trailers, chunk extensions, and a body that has been answered already."""
        # httptools collects a trailer before it calls back, so no callback at all means that one is growing.
        self._silent_bytes = 0 if self._body_seen else self._silent_bytes + received
        if self.cycle is not None and self.cycle.response_complete:
            self._answered_bytes += received
        if self._silent_bytes > self.max_header_bytes or self._answered_bytes > _MAX_UNREAD_BYTES:
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        self._body_seen = True
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come as headers, after the request has been judged by its own: they must not change it.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        # A chunk that completes the headers may hold body bytes as well: the headers themselves decide.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.max_header_bytes:
            self._refuse(HeadersTooLarge(self.max_header_bytes))
            return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = self._answered_bytes = self._silent_bytes = 0

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedHttp("The HTTP request is malformed."))

    def _refuse(self, error: TokkaError) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        body = orjson.dumps(error.body())
        request_id = f"req_{secrets.token_hex(16)}".encode()
        reason = b"Request Header Fields Too Large" if error.status == 431 else b"Bad Request"
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"x-request-id: %s\r\nconnection: close\r\n\r\n" % (error.status, reason, len(body), request_id)
        )
        self.transport.write(body)
        # Closing at once would reset a client that still sends, and the answer would be lost with it.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)


def bounded_protocol(max_header_bytes: int) -> type[BoundedProtocol]:
    """Return a protocol class that answers 431 to longer headers and closes the connection."""
    return type("BoundedProtocol", (BoundedProtocol,), {"max_header_bytes": max_header_bytes})

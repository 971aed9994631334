"""uvicorn's HTTP protocol with a bound on headers and errors in OpenAI's form.

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

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.max_header_bytes:
            self._refuse(HeadersTooLarge(self.max_header_bytes))

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
        self._head_bytes = 0

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

"""HTTP framing: where a request ends in the received bytes, and which headers make it ambiguous."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokka.errors import TokkaError

_EMPTY_LINE = b"\r\n\r\n"
_OVERLAP = len(_EMPTY_LINE) - 1
# RFC 3986 `host [":" port]`: a bracketed IP literal, or a registered name, which covers IPv4. It may be empty.
_HOST = re.compile(rb"(\[[0-9A-Za-z:.%]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(:[0-9]*)?")

Headers = Sequence[tuple[bytes, bytes]]


class MalformedHttp(TokkaError):
    """An HTTP request that is malformed, ambiguous or not supported."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class Framing:
    """Cut received bytes so that no slice reaches into the next request.

    httptools parses all bytes that it gets and does not report where a request ended. A request ends with the empty
    line after its headers or its last chunk, or after `Content-Length` bytes of body.
    """

    def __init__(self) -> None:
        # Bytes of the body that have not arrived yet, if its length is known.
        self._body_left = 0
        # The last bytes of the previous slice, because an empty line may be split between two reads.
        self._tail = b""

    def expect_body(self, headers: Headers) -> None:
        """Store the body's length. The parser has checked the header: digits, once, without Transfer-Encoding."""
        self._body_left = next((int(value) for name, value in headers if name == b"content-length"), 0)

    def slice_end(self, data: bytes, begin: int) -> int:
        """Return where the slice of `data` that starts at `begin` ends."""
        if self._body_left:
            end = min(len(data), begin + self._body_left)
            self._body_left -= end - begin
            return end
        end = self._empty_line_end(data, begin)
        self._tail = (self._tail + data[max(begin, end - _OVERLAP) : end])[-_OVERLAP:]
        return end

    def _empty_line_end(self, data: bytes, begin: int) -> int:
        seam = self._tail + data[begin : begin + _OVERLAP]
        if (found := seam.find(_EMPTY_LINE)) >= 0:
            return begin + found + len(_EMPTY_LINE) - len(self._tail)
        found = data.find(_EMPTY_LINE, begin)
        return len(data) if found < 0 else found + len(_EMPTY_LINE)


def check_headers(version: str, headers: Headers) -> None:
    """Raise MalformedHttp for headers that servers and proxies in a chain may read differently (RFC 9112)."""
    if version not in ("1.0", "1.1"):
        raise MalformedHttp(f"HTTP/{version} is not supported. Use HTTP/1.1.")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise MalformedHttp(f"The request has {len(hosts)} `Host` headers. Send exactly one.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise MalformedHttp("The `Host` header must be a host name or address with an optional port.")
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and version == "1.0":
        raise MalformedHttp("HTTP/1.0 has no `Transfer-Encoding`. Send `Content-Length`, or use HTTP/1.1.")
    if codings not in ([], [b"chunked"]):
        raise MalformedHttp("The only `Transfer-Encoding` supported is `chunked`.")


def without_upgrade(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """Return the request line and headers without the `Upgrade` header."""
    lines = [b"%s %s HTTP/%s" % (method, url, version.encode())]
    lines += [b"%s: %s" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])

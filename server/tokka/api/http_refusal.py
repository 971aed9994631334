"""Responses to bytes that never become a request for the application."""

from __future__ import annotations

import http

from tokka.admission.policy import RETRY_AFTER_S
from tokka.api.connections import Admission
from tokka.api.errors import body_of_error, request_id_headers
from tokka.api.paths import served_path
from tokka.errors import ServerOverloaded, TokkaError
from tokka.protocol.common import new_id

_NO_ROOM: dict[Admission, str] = {
    "full": "The server is at its limit of open connections.",
    "address_full": "Your address is at its limit of open connections. Close or reuse one.",
}


class HeadersTooLarge(TokkaError):
    """The request line and headers exceed their limit."""

    status, type, code = 431, "invalid_request_error", "headers_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The request line and headers are larger than {limit} bytes, the limit of this server. Send less."
        )


class NoRoom(ServerOverloaded):
    """The server or the peer's address has too many connections."""

    def __init__(self, admission: Admission) -> None:
        super().__init__(f"{_NO_ROOM[admission]} Retry in {RETRY_AFTER_S} s.", retry_after_s=RETRY_AFTER_S)


def response_of(error: TokkaError, url: bytes) -> bytes:
    """Return the whole response as bytes. `url`: the request's URL; empty if it is unknown."""
    request_id = new_id("req_")
    path = served_path(url.partition(b"?")[0].decode("latin-1"))
    body = body_of_error(error, path, request_id)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **{name.decode(): value.decode() for name, value in request_id_headers(request_id, path)},
        **error.headers(),
        "connection": "close",
    }
    lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body

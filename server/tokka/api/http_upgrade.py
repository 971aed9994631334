"""Connections that go on with WebSocket frames after a request (RFC 6455)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import ASGIApp

from tokka.api.connections import Connections, Stage
from tokka.api.http_framing import Headers
from tokka.api.http_protocol import BoundedProtocol
from tokka.api.intake import Intake
from tokka.api.write_batching import WriteBatch


class Successor(Protocol):
    """The protocol of a connection after its upgrade."""

    @property
    def stage(self) -> Stage: ...

    def data_received(self, data: bytes) -> None: ...

    def shutdown(self) -> None:
        """Close once the request in flight is complete."""
        ...


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A client's offer to go on with WebSocket frames. It is in the state of the request's scope as `upgrade`."""

    # The whole application, for the requests in the frames, and the path of the request as it was received.
    app: ASGIApp
    path: str
    # Maximum seconds between two requests.
    idle_s: float
    # Gives all bytes after the request to a successor. Call it after a response with the status 101 has begun.
    begin: Callable[[Successor], None]
    # Call it when the successor's stage changes.
    place: Callable[[], None]


class UpgradableProtocol(BoundedProtocol):
    """One connection, which can become a WebSocket.

    The frames are the body of the response with the status 101, so the limits of a response hold for them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_offered = False
        self._successor: Successor | None = None

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            # The headers are parsed again, without the offer.
            self._is_offered = _is_offer(self.parser.get_method(), self.parser.get_http_version(), self.headers)
        super().on_headers_complete()

    def _start(self, version: str) -> None:
        if self._is_offered:
            self._is_offered = False
            self.scope["state"]["upgrade"] = Upgrade(
                self.app, self.scope["path"], self.timeout_keep_alive, self._begin, self._place
            )
        super()._start(version)

    def _begin(self, successor: Successor) -> None:
        self._successor = successor
        # The connection ends with this response. Until then, all bytes belong to the request.
        if self.cycle is not None:
            self.cycle.keep_alive = False
        self._in_head = False
        ahead, self._ahead = self._ahead, b""
        self._hold(False)
        self._place()
        if ahead:
            successor.data_received(ahead)

    def data_received(self, data: bytes) -> None:
        if self._successor is None or self._is_over:
            super().data_received(data)
        else:
            self._successor.data_received(data)

    def shutdown(self) -> None:
        if self._successor is None:
            super().shutdown()
        else:
            self._successor.shutdown()

    def _stage(self) -> Stage:
        if self._successor is None or self._is_over or self.flow.write_paused:
            return super()._stage()
        return self._successor.stage


def _is_offer(method: bytes, version: str, headers: Headers) -> bool:
    """Return whether a request without a body offers a WebSocket."""
    named = dict(headers)
    has_body = b"content-length" in named or b"transfer-encoding" in named
    is_websocket = named.get(b"upgrade", b"").strip().lower() == b"websocket"
    return is_websocket and method == b"GET" and version == "1.1" and not has_body


def bounded_protocol(connections: Connections, is_draining: Callable[[], bool]) -> type[BoundedProtocol]:
    """Return a protocol class whose instances obey the limits and share the registry of connections."""
    shared = {
        "open_connections": connections,
        "batch": WriteBatch(),
        "intake": Intake(),
        "is_draining": staticmethod(is_draining),
    }
    return type("BoundedProtocol", (UpgradableProtocol,), shared)

"""The WebSocket form of /v1/responses: each message is a request to the whole application, and its events are messages.

A request over a WebSocket therefore has the checks, the limits, the record and the log line of a request over HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from websockets.frames import CloseCode

from tokka.api.deps import CurrentServices, Services
from tokka.api.http_upgrade import Upgrade
from tokka.api.websocket import WebSocket, accepting_headers
from tokka.api.wire import Wire
from tokka.dispatch.last_response import LastResponse
from tokka.errors import ConnectionLimitReached, Draining, MethodNotAllowed, TokkaError
from tokka.protocol import sse
from tokka.protocol.responses.create_event import refusal_event

log = structlog.get_logger("tokka.websocket")
router = APIRouter()

# Seconds after which a connection gets no more responses, as the specification demands.
_LIFE_S = 3600.0
# Headers of the handshake that say nothing about the requests after it.
_OF_HANDSHAKE = (b"content-", b"transfer-encoding", b"connection", b"upgrade", b"sec-websocket-", b"x-request-id")
# Parts of the handshake's scope that its requests share.
_SHARED = ("asgi", "http_version", "scheme", "root_path", "server", "client")


@router.get("/v1/responses", include_in_schema=False)
async def connect(request: Request, services: CurrentServices) -> Response:
    if request.scope["state"].get("upgrade") is None:
        raise MethodNotAllowed("Not allowed to GET on /v1/responses. Use POST, or open a WebSocket.", "POST")
    if services.catalogue.is_draining:
        raise Draining("The server is draining and accepts no new connections.")
    return ResponseSocket(services)


class ResponseSocket(Response):
    """Accept a WebSocket, and serve its requests one after the other until it is closed."""

    def __init__(self, services: Services) -> None:
        self.background = None
        self.status_code = 101
        self._services = services
        self._last = services.conversations.of_connection()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        await send({"type": "http.response.start", "status": 101, "headers": accepting_headers(scope)})
        socket = WebSocket(
            state["wire"], state["upgrade"], self._services.body_limit, state["record"].tenant, _refusal_of
        )
        socket.begin()
        try:
            await self._serve(socket, scope)
        except Exception:
            log.exception("websocket_failed")
            socket.close(CloseCode.INTERNAL_ERROR, "the server had an error")
        finally:
            self._last.clear()
        await send({"type": "http.response.body", "body": b""})

    async def _serve(self, socket: WebSocket, scope: Scope) -> None:
        upgrade: Upgrade = scope["state"]["upgrade"]
        until_s = asyncio.get_running_loop().time() + _LIFE_S
        while (message := await socket.message()) is not None:
            if asyncio.get_running_loop().time() > until_s:
                socket.send(_refusal_of(ConnectionLimitReached()))
                socket.close(CloseCode.GOING_AWAY, "the connection is too old")
                return
            # A failed request must not leave the response that it continues. The id occurs nowhere else.
            continues_last = bool(self._last.id) and self._last.id.encode() in message
            reply = _Reply(socket, message)
            request = _request_of(len(message), scope, reply, self._last)
            # A stream may stay open for long. It does not need its request.
            del message
            await upgrade.app(request, reply.receive, reply.send)
            if reply.status not in (0, 200):
                if continues_last:
                    self._last.clear()
                reply.refuse()
            if socket.is_ending or self._services.catalogue.is_draining:
                socket.close(CloseCode.GOING_AWAY, "the server is stopping")


def _request_of(size: int, scope: Scope, wire: Wire, last: LastResponse) -> Scope:
    """Return the scope of the request in a message of this size: a POST with the headers of the handshake."""
    headers = [header for header in scope["headers"] if not header[0].startswith(_OF_HANDSHAKE)]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]
    path = scope["state"]["upgrade"].path
    return {
        **{name: scope[name] for name in _SHARED},
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "state": {"wire": wire, "last_response": last},
    }


class _Reply:
    """The response to one message. Implements `Wire`: each server-sent event becomes a message."""

    def __init__(self, socket: WebSocket, message: bytes) -> None:
        self._socket = socket
        self._message = message
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        # HTTP status of the response. 0: it has not begun.
        self.status = 0

    async def receive(self) -> Message:
        message, self._message = self._message, b""
        return {"type": "http.request", "body": message, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        elif self.status != 200:
            self._body.append(message.get("body", b""))

    def refuse(self) -> None:
        """Send the error that the application answered with."""
        error = orjson.loads(b"".join(self._body))["error"]
        headers = {name: value for name, value in self._headers.items() if not name.startswith("content-")}
        self._socket.send(orjson.dumps(refusal_event(self.status, error, headers)))

    @property
    def is_full(self) -> bool:
        return self._socket.is_full

    def write(self, data: bytes) -> None:
        if data == sse.KEEP_ALIVE:
            self._socket.ping()
        for name, text in sse.parts_of(data):
            # `response.failed` follows. Clients take both for the end of a response, and would see two.
            if name != b"error":
                self._socket.send(text)

    async def drain(self) -> None:
        await self._socket.drain()

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        self._socket.watch(on_gone)


def _refusal_of(error: TokkaError) -> bytes:
    body: dict[str, Any] = error.body()["error"]
    return orjson.dumps(refusal_event(error.status, body, error.headers()))

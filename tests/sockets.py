"""A client of the WebSocket form of /v1/responses. It shows the messages that the server sent."""

from __future__ import annotations

import json
import socket as sockets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect
from websockets.uri import parse_uri

from tests.program import TENANTS

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
PATH = "/v1/responses"
RECEIVE_S = 20


class Served(Protocol):
    """A server, in this process or another."""

    @property
    def url(self) -> str: ...

    @property
    def model(self) -> str: ...


class Socket:
    """One connection."""

    def __init__(self, connection: ClientConnection, model: str) -> None:
        self.connection = connection
        self._model = model

    def ask(self, given: Any = "Hei", **fields: Any) -> None:
        """Send a request."""
        message = {"type": "response.create", "model": self._model, "store": False, "input": given, **fields}
        self.connection.send(json.dumps({name: value for name, value in message.items() if value is not None}))

    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.connection.recv(timeout=RECEIVE_S))
        return event

    def events(self) -> list[dict[str, Any]]:
        """Return the events of one response."""
        events = [self.event()]
        while events[-1]["type"] not in ENDS:
            events.append(self.event())
        return events

    def turn(self, given: Any = "Hei", **fields: Any) -> dict[str, Any]:
        """Send a request and return the response."""
        self.ask(given, **fields)
        last = self.events()[-1]
        assert "response" in last, last
        response: dict[str, Any] = last["response"]
        return response

    def refusal(self, given: Any = "Hei", **fields: Any) -> tuple[int, str, str | None]:
        """Send a request; return status, code and field of the error."""
        self.ask(given, **fields)
        (event,) = self.events()
        assert event["type"] == "error", event
        return event["status"], event["error"]["code"], event["error"]["param"]


@contextmanager
def opened(program: Served, key: str | None = TENANTS[0], **options: Any) -> Iterator[Socket]:
    """Open a WebSocket with a key."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    address = program.url.replace("http://", "ws://").replace("0.0.0.0", "127.0.0.1") + PATH
    headers |= options.pop("headers", {})
    with connect(address, additional_headers=headers, max_size=None, proxy=None, **options) as connection:
        yield Socket(connection, program.model)


def closing_code(socket: Socket) -> int | None:
    """Read until the server closes; return its code."""
    try:
        while True:
            socket.connection.recv(timeout=20)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


class RawSocket:
    """A connection whose client sends frames by hand."""

    def __init__(self, program: Served) -> None:
        at = urlsplit(program.url)
        self.socket = sockets.create_connection((at.hostname, at.port or 0), timeout=20)
        client = ClientProtocol(parse_uri(f"ws://{at.netloc}{PATH}"))
        client.send_request(client.connect())
        self.socket.sendall(b"".join(client.data_to_send()))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(65536)
        assert answer.startswith(b"HTTP/1.1 101 ")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def rest(self) -> bytes:
        """Read until the server closes."""
        data = b""
        while piece := self.socket.recv(65536):
            data += piece
        self.socket.close()
        return data


def frame(data: bytes, opcode: Any = Opcode.TEXT, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)

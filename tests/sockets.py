"""A client of the WebSocket form of /v1/responses. It shows the messages that the server sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.program import TENANTS, Program

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
PATH = "/v1/responses"
RECEIVE_S = 20


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
def opened(program: Program, key: str | None = TENANTS[0], **options: Any) -> Iterator[Socket]:
    """Open a WebSocket with a key."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    address = program.url.replace("http://", "ws://").replace("0.0.0.0", "127.0.0.1") + PATH
    headers |= options.pop("headers", {})
    with connect(address, additional_headers=headers, max_size=None, proxy=None, **options) as connection:
        yield Socket(connection, program.model)

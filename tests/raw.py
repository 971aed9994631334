"""HTTP by hand: sends bytes to the server and reads its responses unchanged, one by one."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.program import Program


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class Connection:
    """One connection to a program."""

    def __init__(self, program: Program, receive_bytes: int | None = None, source: str | None = None) -> None:
        at = urlsplit(program.url)
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if source:
            self.socket.bind((source, 0))
        self.socket.settimeout(30)
        self.socket.connect((at.hostname, at.port))
        # Each send is a separate packet.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def answer(self, *, has_body: bool = True) -> Answer | None:
        """Read one response, framed by its own headers. Return None if the server has closed the connection."""
        status = self._file.readline()
        if not status:
            return None
        lines = iter(lambda: self._file.readline().rstrip(b"\r\n").decode(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(status.split()[1]), headers, self._body(headers) if has_body else b"")

    def rest(self) -> bytes:
        """Read until the server closes the connection; fail if it does not."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self._file.read1(65536):
                data += piece
        return data

    def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return self._file.read(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return self._file.read()
        body = b""
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            self._file.readline()
        self._file.readline()
        return body


@contextlib.contextmanager
def connection(program: Program, receive_bytes: int | None = None, source: str | None = None) -> Iterator[Connection]:
    one = Connection(program, receive_bytes, source)
    try:
        yield one
    finally:
        one.close()


def exchange(program: Program, *packets: bytes) -> list[Answer]:
    """Send the packets on one connection, then a request that closes it; return the responses before the last one."""
    with connection(program) as one:
        for packet in packets:
            one.send(packet)
        one.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers = [answer for answer in iter(one.answer, None) if answer]
    assert answers[-1].closes
    return answers[:-1] if answers[-1].body == b'{"status":"alive"}' else answers

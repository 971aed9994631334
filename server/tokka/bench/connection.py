"""A client that costs almost no CPU during a run: it keeps the received bytes with their times, to parse them later.

Each connection has one HTTP/1.1 exchange at a time. During the run, the client parses only the framing of a response,
to find its end.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from tokka.bench.address import Address

END_OF_HEAD = b"\r\n\r\n"
# The last chunk. A chunk with an event never ends like this: another line end precedes its own.
END_OF_CHUNKS = b"0\r\n\r\n"
CONNECT_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Answer:
    """The bytes of one response, in pieces, each with the time it was read."""

    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended_s: float | None = None
    # The response ended as its framing says, not with a broken connection.
    is_whole: bool = False


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection to a server."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None
        # Remaining bytes of the body; None: the body is chunked, or the headers are incomplete.
        self._left: int | None = None
        self._has_head = False
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Send a request, and wait until its response ends or the connection breaks."""
        assert self._transport is not None
        answer.ended_s = None
        self._answer, self._has_head, self._left, self._tail = answer, False, None, b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            # Data without a request: a server may announce that it closes an idle connection.
            self.close()
            return
        answer.pieces.append((time.monotonic(), data))
        if not self._has_head:
            data = self._read_head(answer)
            if not self._has_head:
                return
        if self._left is None:
            self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
            if self._tail == END_OF_CHUNKS:
                self._end(is_whole=True)
        else:
            self._left -= len(data)
            if self._left <= 0:
                self._end(is_whole=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._end(is_whole=False)

    def close(self) -> None:
        """Close the connection. An incomplete response keeps its pieces and gets no end."""
        self.is_open, self._answer = False, None
        if self._transport is not None:
            self._transport.abort()

    def _read_head(self, answer: Answer) -> bytes:
        """Read the framing of the response once its headers are complete. Return the received part of the body."""
        head, end, body = b"".join(piece for _, piece in answer.pieces).partition(END_OF_HEAD)
        if end:
            self._has_head = True
            headers = headers_of(head)
            self.is_open = headers.get("connection", "").lower() != "close"
            if headers.get("transfer-encoding", "").lower() != "chunked":
                self._left = int(headers.get("content-length", "0"))
        return body

    def _end(self, *, is_whole: bool) -> None:
        answer, done = self._answer, self._done
        self._answer = self._done = None
        if answer is not None:
            answer.ended_s, answer.is_whole = time.monotonic(), is_whole
        if done is not None and not done.done():
            done.set_result(None)


class Pool:
    """Connections to one server. The last used one is reused first, so that the server can close surplus idle ones."""

    def __init__(self, address: Address, *, most: int, reuse: bool) -> None:
        self.opened = 0
        self._address, self._reuse = address, reuse
        # Limits the number of open requests. Callers hold a slot during an exchange.
        self.slots = asyncio.Semaphore(most)
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Send a request on a free connection or a new one. Raises OSError if no connection can be opened."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                await self._exchange(connection, request, answer)
                if answer.is_whole or answer.pieces:
                    return
                # The server closed the idle connection while the request was on its way. Clients must expect this.
            self._all.discard(connection)
        await self._exchange(await self._connect(), request, answer)

    async def close(self) -> None:
        for connection in self._all:
            connection.close()
        # Give the loop time to close each transport.
        await asyncio.sleep(0.01)

    async def _connect(self) -> Connection:
        loop, address = asyncio.get_running_loop(), self._address
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(Connection, address.host, address.port, ssl=address.tls)
        self.opened += 1
        self._all.add(connection)
        return connection

    async def _exchange(self, connection: Connection, request: bytes, answer: Answer) -> None:
        try:
            await connection.exchange(request, answer)
        except asyncio.CancelledError:
            connection.close()
            raise
        if self._reuse and connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
            self._all.discard(connection)


def headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def status_of(head: bytes) -> int:
    found = re.match(rb"HTTP/1\.\d (\d{3})", head)
    return int(found[1]) if found else 0


def head_of(answer: Answer) -> tuple[int, dict[str, str]]:
    """Return a response's status and headers. The status is 0 without a response."""
    head = b"".join(piece for _, piece in answer.pieces[:2]).partition(END_OF_HEAD)[0]
    return status_of(head), headers_of(head)


def body_pieces(answer: Answer) -> tuple[bytes, list[tuple[float, bytes]]]:
    """Return the bytes of a response's headers, and its body without the framing, in pieces with their times."""
    head = b""
    for place, (at_s, piece) in enumerate(answer.pieces, start=1):
        head, end, body = (head + piece).partition(END_OF_HEAD)
        if end:
            rest = [(at_s, body), *answer.pieces[place:]]
            is_chunked = headers_of(head).get("transfer-encoding", "").lower() == "chunked"
            return head, list(_unchunked(rest)) if is_chunked else rest
    return head, []


def _unchunked(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    held, left = b"", 0
    for at_s, piece in pieces:
        held += piece
        while held:
            if left > 2:
                # The last two bytes are the chunk's own line end.
                taken = held[: left - 2]
                yield at_s, taken
                left, held = left - len(taken), held[len(taken) :]
            elif left:
                if len(held) < left:
                    break
                held, left = held[left:], 0
            else:
                line, end, after = held.partition(b"\r\n")
                if not end:
                    break
                held, left = after, int(line.partition(b";")[0], 16) + 2

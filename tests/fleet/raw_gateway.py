"""A gateway that a test plays message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from tokka.fleet.address import Address
from tokka.fleet.token_file import TOKEN_NAME, ensure_token_file
from tokka.fleet.worker import WorkerOptions
from tokka.protocol.worker import messages
from tokka.protocol.worker.frames import MAX_BYTES, FrameReader, frame_of
from tokka.protocol.worker.handshake import Hello, Refusal, Welcome, hello_of, payload_of

Kind = TypeVar("Kind", bound=messages.Message)


class RawGateway:
    """One connection of a worker. `hello`: its first message."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader(MAX_BYTES)
        self._payloads: list[bytearray] = []
        self._read: list[Any] = []
        self.hello: Hello | None = None

    async def payload(self) -> bytearray:
        while not self._payloads:
            data = await self._reader.read(1 << 16)
            if not data:
                raise EOFError
            self._payloads += self._frames.feed(data)
        return self._payloads.pop(0)

    async def meet(self, reply: Welcome | Refusal | None = None) -> None:
        """Read hello and answer it."""
        self.hello = hello_of(await self.payload())
        self._writer.write(frame_of(payload_of(reply or Welcome())))

    def send(self, *sent: messages.Message) -> None:
        self._writer.write(frame_of(messages.encode(list(sent))))

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def next(self, kind: type[Kind]) -> Kind:
        """Return the next message of this kind; drop those before it."""
        async with asyncio.timeout(10):
            while True:
                while self._read:
                    message = self._read.pop(0)
                    if isinstance(message, kind):
                        return message
                self._read += messages.from_worker(await self.payload())


@asynccontextmanager
async def raw_gateway(folder: Path) -> AsyncIterator[tuple[WorkerOptions, asyncio.Queue[RawGateway]]]:
    """Yield the options of a worker that dials here, and its connections as they come."""
    ensure_token_file(folder, tls=False)
    met: asyncio.Queue[RawGateway] = asyncio.Queue()
    writers = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        met.put_nowait(RawGateway(reader, writer))

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    options = WorkerOptions(
        worker="w1",
        model="fake",
        gateways=[address],
        token_file=folder / TOKEN_NAME,
        gateway_timeout_s=30.0,
        drain_timeout_s=30.0,
        stall_timeout_s=20.0,
        max_quick_deaths=5,
    )
    try:
        yield options, met
    finally:
        for writer in writers:
            writer.close()
        server.close()

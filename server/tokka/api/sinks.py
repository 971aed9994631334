"""Where a generation's events become a response: a stream of server-sent events, or one JSON body."""

from __future__ import annotations

import asyncio
import time

from tokka.api.wire import Wire
from tokka.core import Event, Finished
from tokka.errors import TokkaError
from tokka.protocol.chunks import Encoder
from tokka.protocol.folding import Piece

# Bytes of a long response that are written before other tasks may run.
WRITE_BYTES = 64 << 10


class StreamSink:
    """Writes each event's chunks to the wire."""

    __slots__ = ("_encoder", "_timer", "_wire", "sent_s")

    def __init__(self, encoder: Encoder, wire: Wire) -> None:
        self._encoder = encoder
        self._wire = wire
        self._timer: asyncio.TimerHandle | None = None
        # Time of the last write.
        self.sent_s = time.monotonic()

    def keep_alive(self, every_s: float | None) -> None:
        """Show life when the stream is silent for `every_s` seconds, or up to half longer. None: no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if every_s is not None:
            self._timer = asyncio.get_running_loop().call_later(every_s, self._show_life, every_s)

    def _show_life(self, every_s: float) -> None:
        # A stream that waits for its client is not silent.
        if not self._wire.is_full and time.monotonic() - self.sent_s >= every_s * 0.5:
            self._wire.write(self._encoder.keep_alive)
            self.sent_s = time.monotonic()
        self.keep_alive(every_s)

    def take(self, event: Event) -> bool:
        for data in self._encoder.encode(event):
            self._wire.write(data)
            self.sent_s = time.monotonic()
        return not self._wire.is_full

    async def give(self, event: Event) -> None:
        """Write the chunks of an event, in parts if they are long, like a prompt echoed for many choices."""
        if isinstance(event, Finished):
            # Nothing is written after the end, however slowly the client reads it.
            self.keep_alive(None)
        waiting: list[bytes] = []
        size = 0
        for chunk in self._encoder.encode(event):
            waiting.append(chunk)
            size += len(chunk)
            if size > WRITE_BYTES:
                await self.send(b"".join(waiting))
                await asyncio.sleep(0)
                waiting, size = [], 0
        if waiting:
            await self.send(b"".join(waiting))

    async def fail(self, error: TokkaError) -> None:
        """Write the end of a stream that an error has ended."""
        self.keep_alive(None)
        for data in self._encoder.fail(error):
            await self.send(data)

    async def send(self, data: bytes) -> None:
        """Write, and wait until the client has room for more."""
        self._wire.write(data)
        self.sent_s = time.monotonic()
        await self._wire.drain()


class FoldSink:
    """Folds the chunks of the stream that a plain response stands for."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._fold = encoder.fold()

    def take(self, event: Event) -> bool:
        for chunk in self._encoder.feed(event):
            self._fold.add(chunk)
        return True

    async def give(self, event: Event) -> None:
        self.take(event)

    def pieces(self) -> list[Piece]:
        """Return the response as JSON. Call it once, after the last event."""
        return self._fold.pieces()

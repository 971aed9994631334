"""What is written to connections in one turn of the event loop, sent together at its end.

A step of the engine brings a token for each stream. Sent one by one, each write wakes its reader's process, which goes
to sleep again before the next: measured with 32 streams, a write then costs three times as much as back to back. And
what one connection is written in a turn (a head and the first event, the last event and the end) is one write.
"""

from __future__ import annotations

import asyncio
from typing import Any

# Most bytes of a connection held back until the end of the turn. Beyond, the transport gets them, and can tell the
# writer to wait.
_MAX_HELD_BYTES = 64 << 10


class Outbox:
    def __init__(self) -> None:
        self._waiting: list[BatchedTransport] = []

    def add(self, transport: BatchedTransport) -> None:
        """Have the transport flushed when all that is ready to run now has run."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(transport)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            transport.flush()


class BatchedTransport:
    """A transport whose writes wait for the end of the turn. All else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._pieces: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._outbox.add(self)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _MAX_HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            # A connection that was lost in this turn raises, and what others were written would stay here.
            if not self._transport.is_closing():
                self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + self._size

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._pieces.clear()
        self._size = 0
        self._transport.abort()

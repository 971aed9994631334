"""A connection between a gateway and a worker, the same on both sides: frames in, frames out, and its end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from tokka.engine.generation.slices import SLICE_S
from tokka.protocol.worker.frames import HANDSHAKE_BYTES, BrokenFrame, FrameReader, frame_of
from tokka.protocol.worker.messages import encode

log = structlog.get_logger("tokka.fleet")

# Unsent bytes from which a sender waits. A peer that reads never gets there.
_FULL_BYTES = 1 << 20
# Maximum messages of a frame: about 5 ms of work for the peer, which takes a frame in one turn of its event loop.
_FRAME_MESSAGES = 128
# Seconds between two looks at a silent peer.
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Lost:
    """Why a connection ended. `by_peer`: the peer's process closed it, or its system after the process ended."""

    reason: str
    by_peer: bool = False


class Connection(asyncio.Protocol):
    """`on_payload` gets each frame's payload, `on_lost` the end, once; both may be replaced at any time.

    `on_payload` may raise BrokenFrame. Long work is cut into slices between frames.
    """

    def __init__(
        self,
        on_payload: Callable[[bytearray], None],
        on_lost: Callable[[Lost], None],
    ) -> None:
        self.on_payload = on_payload
        self.on_lost = on_lost
        # Called before the messages of a turn are sent. It may add some.
        self.before_flush: Callable[[], None] | None = None
        self._reader = FrameReader(HANDSHAKE_BYTES)
        self._payloads: deque[bytearray] = deque()
        self._is_scheduled = self._is_paused = False
        self._transport: Any = None
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Any] = []
        # Whether the peer reads too slowly.
        self.is_full = False
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._lost: Lost | None = None
        self._is_over = self._is_refused = False
        self._watch: asyncio.TimerHandle | None = None
        self._heard_s = time.monotonic()
        self._closed: asyncio.Future[None] = self._loop.create_future()

    # -- for the owner

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._is_over and not self._transport.is_closing()

    def allow_frames(self, limit: int) -> None:
        """Set the maximum bytes of a received frame."""
        self._reader.limit = limit

    def put(self, message: Any) -> None:
        """Send a message at the end of this turn of the event loop, in one frame with the others of the turn."""
        if not self._waiting:
            self._loop.call_soon(self._flush_turn)
        self._waiting.append(message)

    def send(self, message: Any) -> None:
        """Send a message now, in its own frame. Raises ValueError or OverflowError, as `encode` does."""
        self.send_payload(encode([message]))

    def send_payload(self, payload: bytes) -> None:
        """Raises ValueError for a payload that is too long."""
        self.flush()
        try:
            frame = frame_of(payload)
        except BrokenFrame as error:
            raise ValueError(str(error)) from None
        if self.is_open:
            self._transport.write(frame)

    def flush(self) -> None:
        """Send the messages of `put` now."""
        waiting, self._waiting = self._waiting, []
        if not self.is_open:
            return
        try:
            for at in range(0, len(waiting), _FRAME_MESSAGES):
                self._transport.write(frame_of(encode(waiting[at : at + _FRAME_MESSAGES])))
        except (ValueError, OverflowError, BrokenFrame) as error:
            # The peer would wait for the lost messages.
            log.error("messages_not_sent", error=type(error).__name__)
            self.abort("an internal error: a message could not be written")

    def _flush_turn(self) -> None:
        if self.before_flush is not None:
            self.before_flush()
        self.flush()

    async def drain(self) -> None:
        """Return when there is room for more, or the connection is over."""
        self.flush()
        await self._has_room.wait()

    def watch(self, look: Callable[[float], None]) -> None:
        """Call `look` now and every second with the seconds since the peer's last byte, until the end."""
        self._heard_s = time.monotonic()
        self._look(look, self._heard_s)

    def close(self, reason: str) -> None:
        """Send the waiting messages, then end the connection."""
        self._refuse(reason)
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End the connection now."""
        self._refuse(reason)
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        await asyncio.shield(self._closed)

    # -- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=_FULL_BYTES)
        if self._lost is not None:
            # It was closed before it was there.
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._heard_s = time.monotonic()
        if self._is_refused:
            return
        try:
            self._payloads.extend(self._reader.feed(data))
        except BrokenFrame as error:
            self.abort(str(error))
        else:
            if not self._is_scheduled:
                self._work()

    def pause_writing(self) -> None:
        self.is_full = True
        self._has_room.clear()

    def resume_writing(self) -> None:
        self.is_full = False
        self._has_room.set()

    def eof_received(self) -> None:
        self._set_lost(Lost("the peer closed the connection", by_peer=True))

    def connection_lost(self, error: Exception | None) -> None:
        by_peer = error is None or isinstance(error, ConnectionResetError | BrokenPipeError)
        self._set_lost(Lost(str(error or "the peer closed the connection"), by_peer))
        self._is_over = True
        if self._watch is not None:
            self._watch.cancel()
        self._has_room.set()
        if not self._closed.done():
            self._closed.set_result(None)
        if not self._is_scheduled:
            self._end()

    def _work(self) -> None:
        """Take payloads for one slice of time."""
        self._is_scheduled = False
        until_s = time.monotonic() + SLICE_S
        while self._payloads:
            try:
                self.on_payload(self._payloads.popleft())
            except BrokenFrame as error:
                self.abort(str(error))
            except Exception as error:
                # Our fault, and the state of this connection is unknown.
                log.error("connection_failed", error=type(error).__name__, exc_info=error)
                self.abort(f"an internal error: {type(error).__name__}")
            if self._payloads and time.monotonic() > until_s:
                self._is_scheduled = True
                self._pause()
                self._loop.call_soon(self._work)
                return
        if self._is_over:
            self._end()
        elif self._is_paused and self.is_open:
            self._is_paused = False
            self._transport.resume_reading()

    def _pause(self) -> None:
        if not self._is_paused and self.is_open:
            self._is_paused = True
            self._transport.pause_reading()

    def _look(self, look: Callable[[float], None], due_s: float) -> None:
        now_s = time.monotonic()
        if now_s - due_s > _LOOK_EVERY_S:
            # This process was held up. The peer's frames may wait in the socket.
            self._heard_s = now_s
        look(now_s - self._heard_s)
        if not self._is_over:
            self._watch = self._loop.call_later(_LOOK_EVERY_S, self._look, look, now_s + _LOOK_EVERY_S)

    def _refuse(self, reason: str) -> None:
        """Note that this side ends the connection. It takes no more frames."""
        self._set_lost(Lost(reason))
        self._is_refused = True
        self._payloads.clear()

    def _set_lost(self, lost: Lost) -> None:
        # The first reason is the cause.
        if self._lost is None:
            self._lost = lost

    def _end(self) -> None:
        on_lost, self.on_lost = self.on_lost, _nothing
        assert self._lost is not None
        on_lost(self._lost)


def _nothing(_lost: Lost) -> None:
    pass

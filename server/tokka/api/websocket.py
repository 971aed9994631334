"""A WebSocket: messages in and out, with limits on bytes, frames and time. `websockets` frames them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from starlette.types import Scope
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from tokka.admission.memory import Share
from tokka.api.body_limit import SLOWEST_BYTES_PER_S, BodyLimit
from tokka.api.connections import Stage
from tokka.api.deadline import Deadline
from tokka.api.http_upgrade import Upgrade
from tokka.api.wire import Wire
from tokka.errors import BodyTooLarge, InvalidRequest, ServerOverloaded, SlowRequest, TokkaError

# Bytes parsed at once, and maximum frames of one read: an empty frame has 6 bytes and takes 8 us to parse.
_SLICE_BYTES = 4096
_MAX_FRAMES = 1024
# Memory of a fragment in addition to its data, in bytes.
_FRAGMENT_BYTES = 64
# Maximum messages that wait for the one in flight.
_MAX_WAITING = 1
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_HANDSHAKE = frozenset({b"connection", b"sec-websocket-key", b"sec-websocket-version"})

# `websockets` logs frames, which hold prompts and responses.
_silent = logging.getLogger("tokka.websocket.frames")
_silent.setLevel(logging.CRITICAL + 1)


def accepting_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the headers that accept a WebSocket. Raises InvalidRequest.

    Messages are not compressed: a small one could become a large one.
    """
    headers = Headers()
    for name, value in scope["headers"]:
        if name in _HANDSHAKE:
            headers[name.decode()] = value.decode("latin-1")
    headers["Upgrade"] = "websocket"
    handshake = ServerProtocol(logger=_silent)
    response = handshake.accept(Request(scope["path"], headers))
    if response.status_code != 101:
        raise InvalidRequest(f"The WebSocket handshake is not valid: {str(handshake.handshake_exc)[:200]}.")
    # The HTTP server adds the date.
    accepted = [(name, value) for name, value in response.headers.raw_items() if name != "Date"]
    return [(name.lower().encode(), value.encode()) for name, value in accepted]


class WebSocket:
    """Messages of one connection. Implements `Successor`."""

    def __init__(
        self, wire: Wire, upgrade: Upgrade, limit: BodyLimit, tenant: str, refusal: Callable[[TokkaError], bytes]
    ) -> None:
        """`wire`: carries the frames. `limit`: of one message. `refusal`: returns the message for an error."""
        self._loop = asyncio.get_running_loop()
        self._frames = ServerProtocol(state=State.OPEN, max_size=None, logger=_silent)
        self._wire = wire
        self._upgrade = upgrade
        self._limit = limit
        self._tenant = tenant
        self._refusal = refusal
        # The message that is being received: its fragments, their size, its memory, and the time of its first byte.
        self._fragments: list[bytes] = []
        self._size = 0
        self._share = Share(limit.memory, tenant)
        self._began_s: float | None = None
        # Whole messages that the application has not taken, and their memory.
        self._messages: deque[tuple[bytes, Share]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_answering = False
        self._is_over = False
        # The server wants to close once the request in flight is complete.
        self.is_ending = False
        self._on_gone: Callable[[], None] | None = None
        self._sending, self._idle = Deadline(self._loop), Deadline(self._loop)

    def begin(self) -> None:
        """Receive. Call it once, after the response with the status 101 has begun."""
        self._wire.watch(self._end)
        self._upgrade.begin(self)

    # -- for the application

    async def message(self) -> bytes | None:
        """Return the next message, or None once the connection is closed. The message before it is answered then."""
        self._is_answering = False
        self._upgrade.place()
        if not self._messages and not self._is_over:
            if self._began_s is None:
                self._idle.set(self._upgrade.idle_s, self._close_idle)
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._is_over:
            return None
        message, share = self._messages.popleft()
        share.release()
        self._is_answering = True
        self._upgrade.place()
        return message

    def send(self, message: bytes) -> None:
        """Write a message of text. Does nothing once the connection is closed."""
        if not self._is_over:
            self._frames.send_text(message)
            self._flush()

    def ping(self) -> None:
        """Show that the connection is alive."""
        if not self._is_over:
            self._frames.send_ping(b"")
            self._flush()

    def close(self, code: CloseCode, reason: str) -> None:
        """Write a close frame. `reason`: at most 123 bytes."""
        if not self._is_over:
            self._frames.send_close(code, reason)
            self._flush()
            self._end()

    @property
    def is_full(self) -> bool:
        return self._wire.is_full

    async def drain(self) -> None:
        await self._wire.drain()

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """Call `on_gone` once the connection is closed. None: no longer."""
        self._on_gone = on_gone
        if on_gone is not None and self._is_over:
            on_gone()

    # -- for the connection

    @property
    def stage(self) -> Stage:
        if self._is_answering:
            return "answering"
        return "receiving" if self._messages or self._began_s is not None else "waiting"

    def shutdown(self) -> None:
        self.is_ending = True
        if not self._is_answering:
            self.close(CloseCode.GOING_AWAY, "the server is stopping")

    def data_received(self, data: bytes) -> None:
        count = 0
        for begin in range(0, len(data), _SLICE_BYTES):
            if self._is_over:
                return
            self._frames.receive_data(data[begin : begin + _SLICE_BYTES])
            for frame in self._frames.events_received():
                count += 1
                if isinstance(frame, Frame):
                    self._take(frame)
            # The library answers pings and closes.
            self._flush()
            if self._frames.state is not State.OPEN:
                self._end()
            elif count > _MAX_FRAMES:
                self.close(CloseCode.POLICY_VIOLATION, "too many frames: send each message in one")
        if not self._is_over:
            self._check_unfinished()
            self._upgrade.place()

    def _take(self, frame: Frame) -> None:
        if frame.opcode not in _DATA or self._is_over:
            return
        self._fragments.append(bytes(frame.data))
        self._size += len(frame.data) + _FRAGMENT_BYTES
        if not self._has_allowed_size(self._size) or not frame.fin:
            return
        if len(self._messages) >= _MAX_WAITING + (not self._is_answering):
            self.close(CloseCode.POLICY_VIOLATION, "too many requests: wait for the response before the next one")
            return
        self._messages.append((b"".join(self._fragments), self._share))
        self._fragments, self._size, self._share = [], 0, Share(self._limit.memory, self._tenant)
        self._began_s = None
        self._sending.clear()
        self._idle.clear()
        self._wake()

    def _check_unfinished(self) -> None:
        """Limit the size, memory and time of the message that is being received."""
        size = self._size + len(self._frames.reader.buffer)
        if not size:
            return
        if self._began_s is None:
            self._began_s = self._loop.time()
            self._idle.clear()
        if not self._has_allowed_size(size):
            return
        try:
            self._share.grow_to(size)
        except ServerOverloaded as error:
            self._refuse(error, CloseCode.TRY_AGAIN_LATER)
            return
        # A slow but steady upload is not an attack.
        allowed_s = self._limit.timeout_s + size / SLOWEST_BYTES_PER_S
        self._sending.set(max(0.0, self._began_s + allowed_s - self._loop.time()), self._refuse_slow)

    def _has_allowed_size(self, size: int) -> bool:
        """Return whether a message may have so many bytes. If not, refuse it."""
        if size <= (most := self._limit.max_bytes()) + _FRAGMENT_BYTES:
            return True
        text = f"The message is larger than {most} bytes, the limit of this server. Send less."
        self._refuse(BodyTooLarge(text), CloseCode.MESSAGE_TOO_BIG)
        return False

    def _refuse_slow(self) -> None:
        text = "The message was not complete in time. Send it faster, or send a smaller one."
        self._refuse(SlowRequest(text), CloseCode.POLICY_VIOLATION)

    def _refuse(self, error: TokkaError, code: CloseCode) -> None:
        if not self._is_answering:
            # During a response, its client would take the error for the end of it.
            self.send(self._refusal(error))
        self.close(code, error.code or error.type)

    def _close_idle(self) -> None:
        self.close(CloseCode.GOING_AWAY, "no request within the idle timeout")

    def _flush(self) -> None:
        if data := b"".join(self._frames.data_to_send()):
            self._wire.write(data)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        """The connection is closed, or its close frame is written."""
        if self._is_over:
            return
        self._is_over = True
        self._sending.clear()
        self._idle.clear()
        for _, share in self._messages:
            share.release()
        self._share.release()
        self._messages.clear()
        self._fragments = []
        self._wake()
        if self._on_gone is not None:
            self._on_gone()

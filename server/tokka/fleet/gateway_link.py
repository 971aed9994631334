"""The worker's connection to one gateway: dialled, lost and dialled again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from tokka.engine.replicas import Progress
from tokka.engine.supervision.supervisor import Supervisor
from tokka.engine_facts import EngineStats
from tokka.errors import ConfigurationError, StartupError
from tokka.fleet.address import Address
from tokka.fleet.connection import Connection, Lost
from tokka.fleet.requests import Requests
from tokka.fleet.token_file import JoinToken, read_token_file
from tokka.protocol.worker import messages
from tokka.protocol.worker.frames import MAX_BYTES, BrokenFrame
from tokka.protocol.worker.handshake import Hello, Refusal, payload_of, reply_of

log = structlog.get_logger("tokka.fleet")

# Maximum seconds for the connection, TLS and the gateway's answer.
_DIAL_S = 5.0
# Seconds until the next attempt: the first wait, doubled with each failure, and the longest.
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
# Maximum seconds of silence from a gateway, which sends a ping every second.
_SILENCE_S = 10.0
# Seconds between two reports of the engine's statistics. They travel with other messages, of which there is at least
# one a second, because a frame of their own would cost as much as an engine step's.
_STATS_EVERY_S = 0.1


class GatewayLink:
    """`on_change`: called when the gateway has welcomed, refused or lost this worker.

    `on_drain`: called when the gateway asks the worker to drain.
    """

    def __init__(
        self,
        address: Address,
        token_file: Path,
        hello_of: Callable[[str], Hello],
        supervisor: Supervisor,
        on_change: Callable[[], None],
        on_drain: Callable[[], None],
    ) -> None:
        self.address = address
        self._token_file = token_file
        self._hello_of = hello_of
        self._supervisor = supervisor
        self._on_change = on_change
        self._on_drain = on_drain
        # Why the gateway refused this worker at the last attempt.
        self.refusal: str | None = None
        self._joined: _Joined | None = None
        self._is_draining = False

    @property
    def is_connected(self) -> bool:
        return self._joined is not None

    def check(self) -> JoinToken:
        """Read the token file. Raises StartupError if it is unusable for this gateway."""
        token = read_token_file(self._token_file)
        if token.certificate is None and not self.address.on_loopback:
            raise ConfigurationError(
                f"--join {self.address} is not on loopback, and {self._token_file} holds no certificate; copy the token"
                " file again from a gateway that other machines can reach"
            )
        return token

    @property
    def open_requests(self) -> int:
        return self._joined.open_requests if self._joined is not None else 0

    async def run(self) -> None:
        """Stay connected until cancelled."""
        wait_s = _FIRST_WAIT_S
        while not self._is_draining:
            try:
                if (joined := await self._dial()) is not None:
                    wait_s = _FIRST_WAIT_S
                    await self._serve(joined)
            except (OSError, TimeoutError, BrokenFrame, StartupError) as error:
                log.warning("gateway_not_reached", gateway=str(self.address), reason=str(error) or type(error).__name__)
            # Many workers lose a gateway at the same time.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)

    async def drain(self) -> None:
        """Take no new requests; return when every open one has ended, or the gateway is lost."""
        self._is_draining = True
        if self._joined is not None:
            await self._joined.drain()

    async def leave(self, reason: str) -> None:
        """Say goodbye and end the connection."""
        self._is_draining = True
        if self._joined is not None:
            await self._joined.leave(reason)

    async def _dial(self) -> _Joined | None:
        """Connect and say hello. Return None if the gateway refuses. Raises OSError, TimeoutError, BrokenFrame."""
        token = self.check()
        handshake = _Handshake()
        async with asyncio.timeout(_DIAL_S):
            context = token.client_context()
            await asyncio.get_running_loop().create_connection(
                lambda: handshake.connection, self.address.host, self.address.port, ssl=context
            )
            try:
                handshake.connection.send_payload(payload_of(self._hello_of(token.token)))
                reply = reply_of(await handshake.reply)
            except BaseException:
                handshake.connection.abort("the handshake failed")
                raise
        if isinstance(reply, Refusal):
            handshake.connection.close("refused")
            if self.refusal is None:
                log.error("gateway_refused", gateway=str(self.address), reason=reply.reason)
            self.refusal = reply.reason
            self._on_change()
            return None
        self.refusal = None
        log.info("gateway_joined", gateway=str(self.address), version=reply.version, tls=context is not None)
        return _Joined(handshake, self._supervisor, self._on_drain)

    async def _serve(self, joined: _Joined) -> None:
        if self._is_draining:
            joined.abort()
            return
        self._joined = joined
        self._on_change()
        try:
            lost = await joined.run()
            log.warning("gateway_lost", gateway=str(self.address), reason=lost.reason)
        finally:
            self._joined = None
            self._on_change()


class _Handshake:
    """Waits for the gateway's answer to hello."""

    def __init__(self) -> None:
        self.reply: asyncio.Future[bytearray] = asyncio.get_running_loop().create_future()
        # Frames that came together with the answer.
        self.later: list[bytearray] = []
        self.connection = Connection(self._on_payload, self._on_lost)

    def _on_payload(self, payload: bytearray) -> None:
        if self.reply.done():
            self.later.append(payload)
        else:
            self.reply.set_result(payload)

    def _on_lost(self, lost: Lost) -> None:
        if not self.reply.done():
            self.reply.set_exception(ConnectionError(lost.reason))
            # Nobody waits for it if the dial was given up.
            self.reply.exception()


class _Joined:
    """A connection whose gateway has welcomed this worker."""

    def __init__(self, handshake: _Handshake, supervisor: Supervisor, on_drain: Callable[[], None]) -> None:
        connection = self._connection = handshake.connection
        self._supervisor = supervisor
        self._on_drain = on_drain
        self._requests = Requests(supervisor.engine, connection, self._send_stats)
        self._sent = EngineStats()
        self._next_stats_s = 0.0
        # Set when the gateway opens no more requests.
        self._no_more = asyncio.Event()
        self._lost: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()
        connection.on_payload = self._on_payload
        connection.on_lost = self._on_lost
        connection.before_flush = self._report_stats
        connection.allow_frames(MAX_BYTES)
        connection.watch(self._look)
        for payload in handshake.later:
            self._on_payload(payload)

    @property
    def open_requests(self) -> int:
        return self._requests.count

    async def run(self) -> Lost:
        """Report the engine's state until the connection is lost."""
        reporting = asyncio.create_task(self._report_phases())
        try:
            return await asyncio.shield(self._lost)
        finally:
            reporting.cancel()
            self._connection.abort("the worker has left")
            self._requests.close()
            await asyncio.gather(reporting, return_exceptions=True)

    def abort(self) -> None:
        self._connection.abort("the worker drains")

    async def drain(self) -> None:
        """Return when no request is open and none can come, or the gateway is lost."""
        self._connection.put(messages.Draining())
        drained = asyncio.create_task(self._drained())
        waits: set[asyncio.Future[Any]] = {drained, self._lost}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()

    async def leave(self, reason: str) -> None:
        self._connection.put(messages.Bye(reason))
        self._connection.close(reason)
        await self._connection.wait_closed()

    async def _drained(self) -> None:
        # Requests that the gateway has sent before it knew of the drain.
        await self._no_more.wait()
        await self._requests.idle()

    def _look(self, silent_s: float) -> None:
        if not self._connection.is_open:
            # It could not be closed within a second, because the gateway reads nothing.
            self._connection.abort("the gateway reads nothing")
        elif silent_s > _SILENCE_S:
            # A gateway that goes on reads the goodbye, and counts no death against its requests.
            self._connection.put(messages.Bye(f"the gateway was silent for {silent_s:.1f} s"))
            self._connection.close(f"the gateway was silent for {silent_s:.1f} s")

    def _on_payload(self, payload: bytearray) -> None:
        for message in messages.from_gateway(payload):
            match message:
                case messages.Ping():
                    self._connection.put(messages.Pong())
                case messages.Drain():
                    self._on_drain()
                case messages.NoMore():
                    self._no_more.set()
                case _:
                    self._requests.take(message)

    def _on_lost(self, lost: Lost) -> None:
        if not self._lost.done():
            self._lost.set_result(lost)

    async def _report_phases(self) -> None:
        async for progress in self._supervisor.changes():
            self._connection.put(self._phase_of(progress))

    def _phase_of(self, progress: Progress) -> Any:
        info = self._supervisor.info
        if progress.state == "ready" and info is not None:
            return messages.Ready(self._supervisor.number, info)
        return messages.Phase(progress.state, progress.phase, progress.detail)

    def _report_stats(self) -> None:
        if time.monotonic() >= self._next_stats_s:
            self._send_stats()

    def _send_stats(self) -> None:
        self._next_stats_s = time.monotonic() + _STATS_EVERY_S
        stats = self._supervisor.stats()
        if stats != self._sent:
            self._sent = stats
            self._connection.put(messages.Stats(stats))

"""`tokka worker` at run time: an engine that serves the gateways it joins, until a signal, a drain or their end."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from tokka.engine.base import Engine
from tokka.engine.supervision.restart import RestartPolicy
from tokka.engine.supervision.supervisor import Supervisor
from tokka.errors import ConfigurationError, StartupError, TemporaryError
from tokka.fleet.address import Address
from tokka.fleet.gateway_link import GatewayLink
from tokka.protocol.worker.handshake import Hello

log = structlog.get_logger("tokka.fleet")

# Maximum seconds to say goodbye. A frozen gateway does not read it.
_GOODBYE_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """`worker`: an id for the gateways. `gateway_timeout_s`: how long the worker looks for a gateway after the last."""

    worker: str
    model: str
    gateways: Sequence[Address]
    token_file: Path
    gateway_timeout_s: float
    drain_timeout_s: float
    stall_timeout_s: float
    max_quick_deaths: int


class Worker:
    """One engine and its links to the gateways."""

    def __init__(self, options: WorkerOptions, create_engine: Callable[[], Engine]) -> None:
        self._options = options
        self._stop = asyncio.Event()
        self._links_changed = asyncio.Event()
        self.supervisor = Supervisor(
            create_engine,
            on_state=lambda _state: None,
            on_restart=lambda _reason: None,
            policy=RestartPolicy(options.max_quick_deaths),
            stall_timeout_s=options.stall_timeout_s,
        )
        self._links = [
            GatewayLink(address, options.token_file, self._hello, self.supervisor, self._links_changed.set, self.drain)
            for address in options.gateways
        ]

    @property
    def open_requests(self) -> int:
        return sum(link.open_requests for link in self._links)

    def drain(self) -> None:
        """Finish the open requests, then end."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until drained. Raises StartupError if no engine or no gateway can be had."""
        for link in self._links:
            link.check()
        running = asyncio.create_task(self.supervisor.run())
        watching = asyncio.create_task(self._watch_gateways())
        stopping = asyncio.create_task(self._stopped())
        links = [asyncio.create_task(link.run()) for link in self._links]
        reason = "it was stopped"
        try:
            await asyncio.wait({running, watching, stopping, *links}, return_when=asyncio.FIRST_COMPLETED)
            for task in (running, watching, *links):
                if task.done():
                    # Raise its error: without it, this worker serves nobody.
                    task.result()
            await self._drain()
            reason = "drained"
        except StartupError as error:
            reason = str(error)
            raise
        finally:
            # Goodbye comes first: requests that the engine's end breaks off must not count against it.
            await self._leave(reason)
            for task in (running, watching, stopping, *links):
                task.cancel()
            await self.supervisor.close()
            await asyncio.gather(running, watching, stopping, *links, return_exceptions=True)

    async def _stopped(self) -> None:
        await self._stop.wait()

    async def _drain(self) -> None:
        log.info("draining", timeout_s=self._options.drain_timeout_s)
        try:
            async with asyncio.timeout(self._options.drain_timeout_s):
                await asyncio.gather(*(link.drain() for link in self._links))
        except TimeoutError:
            log.warning("drain_timeout")

    async def _leave(self, reason: str) -> None:
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await asyncio.gather(*(link.leave(reason) for link in self._links))
        except TimeoutError:
            log.warning("goodbye_timeout")

    async def _watch_gateways(self) -> None:
        """Raise StartupError when every gateway refuses this worker, or none was connected for the timeout."""
        timeout_s = self._options.gateway_timeout_s
        alone_since_s: float | None = time.monotonic()
        while True:
            if any(link.is_connected for link in self._links):
                alone_since_s = None
            elif alone_since_s is None:
                alone_since_s = time.monotonic()
            if all(link.refusal is not None and not link.is_connected for link in self._links):
                link = self._links[0]
                raise ConfigurationError(f"the gateway at {link.address} refused this worker: {link.refusal}")
            left_s = None if alone_since_s is None else alone_since_s + timeout_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                addresses = ", ".join(str(link.address) for link in self._links)
                raise TemporaryError(f"no gateway could be reached for {timeout_s:g} s; looked at {addresses}")
            self._links_changed.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._links_changed.wait()
            except TimeoutError:
                continue

    def _hello(self, token: str) -> Hello:
        return Hello(token, self._options.worker, self._options.model, socket.gethostname(), os.getpid())

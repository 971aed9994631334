"""A gateway's listener for tests, and workers in the same process."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokka.engine.base import Engine
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.fleet.address import Address
from tokka.fleet.listener import Listener
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.token_file import TOKEN_NAME, ensure_token_file, server_context
from tokka.fleet.worker import Worker, WorkerOptions
from tokka.protocol.worker.handshake import Hello


@dataclass
class Gateway:
    """A listener, its address, and the changes of its workers."""

    listener: Listener
    address: Address
    token_file: Path
    token: str
    # Set at each change of a worker, and replaced.
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def worker(self, fact: Callable[[RemoteWorker], bool], within_s: float = 30) -> RemoteWorker:
        """Return the first worker for which `fact` is true."""
        async with asyncio.timeout(within_s):
            while True:
                for worker in self.listener.workers.values():
                    if fact(worker):
                        return worker
                self.changed.clear()
                await self.changed.wait()

    async def ready(self, within_s: float = 30) -> RemoteWorker:
        """Return a worker whose engine is ready."""
        return await self.worker(lambda worker: worker.state == "ready", within_s)

    async def state(self, worker: RemoteWorker, state: str, within_s: float = 30) -> None:
        """Return when a worker has reached the state."""
        async with asyncio.timeout(within_s):
            while worker.state != state:
                self.changed.clear()
                await self.changed.wait()


async def until(fact: Callable[[], bool], within_s: float = 5) -> float:
    """Return when the fact is true, with the seconds that it took."""
    began_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while not fact():  # noqa: ASYNC110 - another process may make it true
            await asyncio.sleep(0.01)
    return time.monotonic() - began_s


@asynccontextmanager
async def gateway(
    folder: Path,
    *,
    tls: bool = False,
    host: str = "127.0.0.1",
    port: int = 0,
    accepts: Callable[[Hello], str | None] = lambda _hello: None,
) -> AsyncIterator[Gateway]:
    """Run a gateway's listener with its token in this folder."""
    token = ensure_token_file(folder, tls=tls)
    changed = asyncio.Event()
    listener = Listener(token.token, server_context(folder, token), accepts, lambda _worker: changed.set())
    bound = socket.create_server((host, port))
    address = Address(host, bound.getsockname()[1])
    listener.open([bound])
    try:
        yield Gateway(listener, address, folder / TOKEN_NAME, token.token, changed)
    finally:
        await listener.close()


def options_of(*gateways: Gateway, **changes: Any) -> WorkerOptions:
    """Return the options of a worker that joins these gateways."""
    values: dict[str, Any] = {
        "worker": "w1",
        "model": "fake",
        "gateways": [gateway.address for gateway in gateways],
        "token_file": gateways[0].token_file,
        "gateway_timeout_s": 30.0,
        "drain_timeout_s": 30.0,
        "stall_timeout_s": 20.0,
        "max_quick_deaths": 5,
    }
    return WorkerOptions(**values | changes)


@asynccontextmanager
async def worker(
    *gateways: Gateway, create_engine: Callable[[], Engine] = lambda: FakeEngine(FakeOptions()), **changes: Any
) -> AsyncIterator[Worker]:
    """Run a worker with the scripted engine in this process."""
    running = Worker(options_of(*gateways, **changes), create_engine)
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

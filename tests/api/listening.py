"""An HTTP server in this process, with the server's own protocol class."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
import uvloop

from tests.contract.conftest import serving
from tokka.api.connections import Connections, Cut, Limits
from tokka.api.http_upgrade import bounded_protocol
from tokka.engine.fake import FakeOptions


class Listener(uvicorn.Server):
    """A uvicorn server that leaves the signal handlers alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@asynccontextmanager
async def listening(
    app: Any = None, send_bytes: int | None = None, limit_s: float = 30
) -> AsyncIterator[tuple[int, Connections, list[Cut]]]:
    """Serve `app`, or the application with the scripted engine. Yield the port, the registry and the cuts."""
    cuts: list[Cut] = []
    connections = Connections(Limits(65536, limit_s, limit_s, 1000), cuts.append)
    async with serving(FakeOptions()) as server:
        protocol = bounded_protocol(connections, lambda: False)
        config = uvicorn.Config(
            app or server.app,
            http=protocol,
            lifespan="off",
            log_config=None,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        listener = Listener(config)
        with socket.create_server(("127.0.0.1", 0)) as at:
            if send_bytes:
                at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
            running = asyncio.create_task(listener.serve(sockets=[at]))
            try:
                await until(lambda: listener.started)
                yield at.getsockname()[1], connections, cuts
            finally:
                listener.should_exit = True
                await running


async def until(fact: Callable[[], bool]) -> None:
    """Return as soon as the fact holds. Fails after 10 s."""
    async with asyncio.timeout(10):
        while not fact():  # noqa: ASYNC110 - the protocol has no event to wait for
            await asyncio.sleep(0.001)


def on_uvloop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())

"""`tokka serve` at run time: accounts, socket, engine; on a signal drain, stop, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import structlog
import uvicorn

from tokka import __version__
from tokka.api.connections import RESERVE, Connections, Limits
from tokka.api.http_protocol import bounded_protocol
from tokka.app import Server, create_server, measure_event_loop_lag
from tokka.cli.access import check_access
from tokka.cli.listener import BACKLOG, open_for_connections, url_of
from tokka.cli.open_files import open_files
from tokka.engine.base import Engine
from tokka.engine.memory import settle_heap
from tokka.engine.processes import end_resource_tracker, kill_children
from tokka.observability.lines import LineWriter
from tokka.observability.loop_turns import LoopTurns
from tokka.settings import Settings, parse_size

log = structlog.get_logger("tokka.serve")

# After the drain nothing is left but connections that refuse to end.
_CLOSE_CONNECTIONS_S = 3
# Of the open files, for all else: the engine's sockets and pipes, libraries, what is read now and then.
_OTHER_FILES = 128 + RESERVE
_SAFE_KEY_CHARS = 16
# A second signal means at once: a log that nobody reads holds up the end no longer than this.
_LAST_LINES_S = 0.2


async def serve(
    settings: Settings, create_engine: Callable[[], Engine], listeners: list[socket.socket], lines: LineWriter
) -> int:
    """Serve on bound sockets until told to stop; return the exit code. Raises StartupError."""
    server = create_server(settings, create_engine)
    server.metrics.watch_log(lambda: lines.dropped)
    turns = LoopTurns(server.metrics.observe_turn)
    server.metrics.watch_turns(lambda: turns.longest_s)
    _drain_on_signals(server, lines)
    try:
        # First what can be wrong, then what takes long.
        if not await _has_opened_accounts(server):
            return 0
        _check_access(settings, server)
        # What is imported by now lives until the end: a look at all of it would hold the event loop for 0.1 s.
        settle_heap()
        open_for_connections(listeners, settings)
        url = url_of(listeners, settings)
        log.info("listening", url=url, version=__version__, pid=os.getpid(), chat="/", docs="/docs")
        return await _serve_http(settings, server, listeners, turns)
    finally:
        # The engine has ended: every request has been counted.
        await server.supervisor.close()
        await server.bodies.close()
        await server.accounts.close()
        turns.close()
        log.info("stopped", longest_turn_s=round(turns.longest_s, 4))


async def _has_opened_accounts(server: Server) -> bool:
    """Open the database, and wait for one that is not there yet; return False if told to stop meanwhile."""
    opening = asyncio.create_task(server.accounts.open())
    stopping = asyncio.create_task(server.stop.wait())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            # Raises why the database cannot be used.
            opening.result()
        return opening.done()
    finally:
        opening.cancel()
        stopping.cancel()
        await asyncio.gather(opening, stopping, return_exceptions=True)


async def _serve_http(settings: Settings, server: Server, listeners: list[socket.socket], turns: LoopTurns) -> int:
    """Answer requests until told to stop, or until the engine is gone for good."""
    running = asyncio.create_task(server.supervisor.run())
    http = _HttpServer(_http_config(settings, server))
    serving = asyncio.create_task(http.serve(sockets=listeners))
    stopping = asyncio.create_task(server.stop.wait())
    admitting = asyncio.create_task(server.admission.run(server.supervisor.stats))
    aside = [
        asyncio.create_task(measure_event_loop_lag(server.metrics)),
        asyncio.create_task(_announce(settings, server, turns)),
        asyncio.create_task(server.accounts.run()),
    ]
    if server.tokens:
        aside.append(asyncio.create_task(server.tokens.run()))
    try:
        await asyncio.wait({serving, running, admitting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            # Raises why there is no engine and will be none.
            running.result()
        if admitting.done():
            # Raises what is wrong with us: without it nobody's turn would come.
            admitting.result()
        if serving.done():
            # Raises what ended it: nobody has asked for that.
            serving.result()
            return 1
        await _drain(settings, server)
        return 0
    finally:
        for task in (running, admitting, stopping, *aside):
            task.cancel()
        # First the engine: what it still works on ends with an error that its clients get to see.
        await server.supervisor.close()
        http.should_exit = True
        await asyncio.gather(running, serving, admitting, stopping, *aside, return_exceptions=True)


def _check_access(settings: Settings, server: Server) -> None:
    """Log who needs a key, and warn of keys that can be guessed. Raises ConfigurationError as `check_access` does."""
    check_access(settings, server.accounts.ring, time.time())
    for place, key in enumerate([*settings.api_key, *settings.admin_key, *settings.metrics_key], start=1):
        if len(key) < _SAFE_KEY_CHARS:
            log.warning("guessable_api_key", place=place, remedy=f"use {_SAFE_KEY_CHARS} random characters or more")


async def _announce(settings: Settings, server: Server, turns: LoopTurns) -> None:
    async for progress in server.supervisor.changes():
        if progress.state == "ready":
            turns.start()
            log.info("ready", model=settings.names()[0], after_s=round(progress.elapsed_s, 1))


async def _drain(settings: Settings, server: Server) -> None:
    log.info("draining", open_requests=server.admission.open_requests, timeout_s=settings.drain_timeout)
    try:
        async with asyncio.timeout(settings.drain_timeout):
            await server.admission.idle()
    except TimeoutError:
        log.warning("drain_timeout", open_requests=server.admission.open_requests)
        server.admission.refuse_waiting()


def _drain_on_signals(server: Server, lines: LineWriter) -> None:
    """Let SIGTERM, SIGINT and SIGHUP drain the server, and the second SIGTERM or SIGINT end the process at once."""
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        if signalled:
            kill_children()
            end_resource_tracker()
            lines.finish(_LAST_LINES_S)
            os._exit(1)
        signalled = True
        server.drain()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    # `nohup` has it ignored. A terminal that closes may send it more than once.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, server.drain)


class _HttpServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals mean drain first; uvicorn would close its listener at once.
        yield


def _http_config(settings: Settings, server: Server) -> uvicorn.Config:
    connections = Connections(
        Limits(
            header_bytes=parse_size(settings.max_header_size),
            header_s=settings.header_timeout,
            write_s=settings.write_timeout,
            max_connections=max(1, min(settings.max_connections, open_files() - _OTHER_FILES)),
            max_per_address=settings.max_connections_per_address,
        ),
        server.metrics.count_cut,
    )
    server.metrics.watch_connections(lambda: connections.count)
    return uvicorn.Config(
        server.app,
        http=bounded_protocol(connections, lambda: server.admission.is_draining),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.idle_timeout,
        timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
        # Behind a proxy the peer's address is in no decision of ours, so no header may change it.
        proxy_headers=False,
    )

"""`tokka serve` at run time: starts accounts, sockets and engine; on a signal, drains and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import structlog
import uvicorn

from tokka import __version__
from tokka.api.connections import RESERVE, Connections, Limits
from tokka.api.http_upgrade import bounded_protocol
from tokka.app import Server
from tokka.cli.access import check_access
from tokka.cli.drain_signals import drain_on_signals
from tokka.cli.listener import BACKLOG, handles_of, open_for_connections, url_of
from tokka.cli.open_files import open_files
from tokka.engine.replicas import SERVES
from tokka.engine.supervision.heap import collect_while_idle, trim_heap
from tokka.observability.log_writer import LineWriter
from tokka.observability.loop_turns import LoopTurns
from tokka.settings import Settings, parse_size

log = structlog.get_logger("tokka.serve")

# Seconds that connections have to close after the drain.
_CLOSE_CONNECTIONS_S = 3
# Open files that are reserved for other uses than connections: the engine's sockets and pipes, libraries, short reads.
_OTHER_FILES = 128 + RESERVE
# Minimum characters of a key, below which the server warns that it can be guessed.
_SAFE_KEY_CHARS = 16
# Seconds between two renewals of the `Date` header.
_DATE_EVERY_S = 1.0


async def serve(
    settings: Settings,
    create: Callable[[], Server],
    listeners: list[socket.socket],
    lines: LineWriter,
) -> int:
    """Serve on bound sockets until stopped. Return the exit code. Raises StartupError."""
    server = create()
    server.metrics.watch_log(lambda: lines.dropped)
    turns = LoopTurns(server.metrics.observe_turn)
    server.metrics.watch_turns(lambda: turns.longest_s)
    drain_on_signals(server.drain, lines)
    try:
        # The checks that can fail come before the slow steps.
        if not await _has_opened_accounts(server):
            return 0
        _check_access(settings, server)
        if server.fleet is not None:
            server.fleet.open()
        # Imported objects live until the end. A garbage collection of all of them would block the event loop for 0.1 s.
        trim_heap()
        open_for_connections(listeners, settings)
        url = url_of(listeners, settings)
        log.info("listening", url=url, version=__version__, pid=os.getpid(), chat="/", docs="/docs")
        return await _serve_http(settings, server, listeners, turns)
    finally:
        # Close the engines before the accounts, so that every request is counted.
        await server.catalogue.close()
        if server.fleet is not None:
            await server.fleet.close()
        await server.bodies.close()
        await server.accounts.close()
        turns.close()
        log.info("stopped", longest_turn_s=round(turns.longest_s, 4))


async def _has_opened_accounts(server: Server) -> bool:
    """Open the database, and wait until it is available. Return False if stopped first. Raises StartupError."""
    opening = asyncio.create_task(server.accounts.open())
    stopping = asyncio.create_task(server.stop.wait())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            # Raise the error if the database cannot be used.
            opening.result()
        return opening.done()
    finally:
        opening.cancel()
        stopping.cancel()
        await asyncio.gather(opening, stopping, return_exceptions=True)


async def _serve_http(settings: Settings, server: Server, listeners: list[socket.socket], turns: LoopTurns) -> int:
    """Serve requests until stopped, then drain. Return the exit code. Raises StartupError if the engine fails."""
    running = asyncio.create_task(server.replicas.run() if server.fleet is None else server.fleet.run())
    limits = _connection_limits(settings)
    http = _HttpServer(_http_config(settings, server, limits))
    serving = asyncio.create_task(http.serve(sockets=handles_of(listeners, limits)))
    stopping = asyncio.create_task(server.stop.wait())
    admitting = asyncio.create_task(server.catalogue.admit())
    beside = asyncio.create_task(server.catalogue.run_beside())
    aside = [
        asyncio.create_task(_announce(server, turns)),
        asyncio.create_task(server.accounts.run()),
        asyncio.create_task(server.responses.run()),
        asyncio.create_task(collect_while_idle(lambda: server.catalogue.open_requests)),
    ]
    if server.tokens:
        aside.append(asyncio.create_task(server.tokens.run()))
    try:
        await asyncio.wait({serving, running, beside, admitting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            # Raise the error that ended it: there will be no engine.
            running.result()
        if beside.done():
            # Raise the error of a model that could not be started with the server.
            beside.result()
        if admitting.done():
            # Raise the error of the admission loop. Without this loop, queued requests would never start.
            admitting.result()
        if serving.done():
            # Raise the error of the HTTP server, which has ended unasked.
            serving.result()
            return 1
        await _drain(settings, server)
        if server.fleet is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            # Requests that are left after the drain's time would keep their workers.
            await server.catalogue.close()
            await server.fleet.stop()
        return 0
    finally:
        for task in (running, beside, admitting, stopping, *aside):
            task.cancel()
        await server.background.close()
        # Close the engines before HTTP. Their in-flight requests end with an error that the clients still receive.
        await server.catalogue.close()
        http.close()
        await asyncio.gather(running, beside, serving, admitting, stopping, *aside, return_exceptions=True)


def _check_access(settings: Settings, server: Server) -> None:
    """Log the access rule, and warn of keys that can be guessed. Raises ConfigurationError as `check_access` does."""
    check_access(settings, server.accounts.ring, time.time())
    for place, key in enumerate([*settings.api_key, *settings.admin_key, *settings.metrics_key], start=1):
        if len(key) < _SAFE_KEY_CHARS:
            log.warning("guessable_api_key", place=place, remedy=f"use {_SAFE_KEY_CHARS} random characters or more")


async def _announce(server: Server, turns: LoopTurns) -> None:
    serves = False
    async for progress in server.catalogue.changes():
        served, serves = serves, progress.state in SERVES
        if serves and not served:
            turns.start()
            log.info("ready", model=server.catalogue.main.names[0], after_s=round(progress.elapsed_s, 1))


async def _drain(settings: Settings, server: Server) -> None:
    log.info("draining", open_requests=server.catalogue.open_requests, timeout_s=settings.drain_timeout)
    try:
        async with asyncio.timeout(settings.drain_timeout):
            await server.catalogue.idle()
    except TimeoutError:
        log.warning("drain_timeout", open_requests=server.catalogue.open_requests)
        server.catalogue.refuse_waiting()


class _HttpServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._closes = asyncio.Event()

    def close(self) -> None:
        """Let `serve` close the listeners and connections, and return."""
        self.should_exit = True
        self._closes.set()

    async def main_loop(self) -> None:
        # Uvicorn's own loop wakes ten times a second. Each tenth time it renews the `Date` header.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_EVERY_S):
                    await self._closes.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals start a drain. Uvicorn's own handlers would close the listeners at once.
        yield


def _connection_limits(settings: Settings) -> Limits:
    return Limits(
        header_bytes=parse_size(settings.max_header_size),
        header_s=settings.header_timeout,
        write_s=settings.write_timeout,
        max_connections=max(1, min(settings.max_connections, open_files() - _OTHER_FILES)),
        max_per_address=settings.max_connections_per_address,
    )


def _http_config(settings: Settings, server: Server, limits: Limits) -> uvicorn.Config:
    connections = Connections(limits, server.metrics.count_cut)
    server.metrics.watch_connections(lambda: connections.count)
    return uvicorn.Config(
        server.app,
        http=bounded_protocol(connections, lambda: server.catalogue.is_draining),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.idle_timeout,
        timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
        # A header must not change the peer's address. No decision uses the address that a proxy reports.
        proxy_headers=False,
    )

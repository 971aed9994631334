"""`tokka serve` at run time: the socket first, then the engine; on a signal drain, stop, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import structlog
import uvicorn
import uvloop

from tokka import __version__
from tokka.api.connections import RESERVE, Connections, Limits
from tokka.api.http_protocol import bounded_protocol
from tokka.app import Server, create_server, engine_factory, measure_event_loop_lag
from tokka.cli.access import check_access
from tokka.engine.base import Engine
from tokka.engine.processes import end_resource_tracker, kill_children
from tokka.errors import ConfigurationError, StartupError
from tokka.observability.lines import LineWriter
from tokka.observability.logging import configure_logging
from tokka.observability.loop_turns import LoopTurns
from tokka.settings import Settings, exposed_files, load_settings, parse_size, visible_options, with_secrets

log = structlog.get_logger("tokka.serve")

_BACKLOG = 2048
# Unsent bytes the kernel takes of an answer; it would take 4 MB, and a client that does not read would seem to.
_UNSENT_BYTES = 64 << 10
# After the drain nothing is left but connections that refuse to end.
_CLOSE_CONNECTIONS_S = 3
_OPEN_FILES = 65536
# Of them for all else: the engine's sockets and pipes, libraries, what is read now and then.
_OTHER_FILES = 128 + RESERVE
_SAFE_KEY_CHARS = 16
_STDERR = 2


def run(flags: dict[str, Any], config: Path | None) -> int:
    """Serve until told to stop; return the exit code. A failure to start is one line on stderr."""
    debug = flags.get("log_level") == "debug"
    _occupy_standard_files()
    try:
        settings = with_secrets(load_settings(flags, config))
        debug = settings.log_level == "debug"
        with _surroundings(settings) as lines:
            _warn_of_exposed_secrets(settings, flags)
            _raise_open_files()
            create_engine = engine_factory(settings)
            listener = _listen(settings)
            with contextlib.closing(listener), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_serve(settings, create_engine, listener, lines))
    except StartupError as error:
        if debug:
            traceback.print_exc()
        print(f"tokka: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        reason = " ".join(str(error).split())[:500]
        print(f"tokka: unexpected {type(error).__name__}: {reason}; --log-level debug shows more", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _surroundings(settings: Settings) -> Iterator[LineWriter]:
    """Set up what is there before the server and goes after it."""
    lines = configure_logging(settings.log_format, settings.log_level)
    try:
        yield lines
    finally:
        lines.finish()
        end_resource_tracker()


def _occupy_standard_files() -> None:
    """Open what the caller has closed of the first three files: else a socket takes its number, and gets the log."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)


async def _serve(
    settings: Settings, create_engine: Callable[[], Engine], listener: socket.socket, lines: LineWriter
) -> int:
    server = create_server(settings, create_engine)
    server.metrics.watch_log(lambda: lines.dropped)
    turns = LoopTurns(server.metrics.observe_turn)
    server.metrics.watch_turns(lambda: turns.longest_s)
    _drain_on_signals(server)
    log.info("listening", url=_url(settings, listener), version=__version__, pid=os.getpid(), chat="/", docs="/docs")
    # The engine takes longest, so it starts first; whoever calls meanwhile waits in the socket's queue.
    running = asyncio.create_task(server.supervisor.run())
    try:
        await server.accounts.open()
        _check_access(settings, server)
        return await _serve_http(settings, server, listener, running, turns)
    finally:
        running.cancel()
        # First the engine: what it still works on ends with an error that its clients get to see.
        await server.supervisor.close()
        await asyncio.gather(running, return_exceptions=True)
        await server.bodies.close()
        # Last: every request has been counted.
        await server.accounts.close()
        turns.close()
        log.info("stopped", longest_turn_s=round(turns.longest_s, 4))


async def _serve_http(
    settings: Settings, server: Server, listener: socket.socket, running: asyncio.Task[None], turns: LoopTurns
) -> int:
    """Answer requests until told to stop, or until the engine is gone for good."""
    http = _HttpServer(_http_config(settings, server))
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    stopping = asyncio.create_task(server.stop.wait())
    admitting = asyncio.create_task(server.admission.run(lambda: server.supervisor.stats().waiting))
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
        await server.supervisor.close()
        http.should_exit = True
        await asyncio.gather(serving, admitting, stopping, *aside, return_exceptions=True)
        if settings.uds:
            settings.uds.unlink(missing_ok=True)


def _check_access(settings: Settings, server: Server) -> None:
    """Log who needs a key, and warn of keys that can be guessed. Raises ConfigurationError as `check_access` does."""
    check_access(settings, server.accounts.ring, time.time())
    for place, key in enumerate([*settings.api_key, *settings.admin_key, *settings.metrics_key], start=1):
        if len(key) < _SAFE_KEY_CHARS:
            log.warning("guessable_api_key", place=place, remedy=f"use {_SAFE_KEY_CHARS} random characters or more")


def _warn_of_exposed_secrets(settings: Settings, flags: dict[str, Any]) -> None:
    """Warn of secrets that other users of this machine can read."""
    if options := visible_options(flags):
        remedy = f"give {', '.join(f'{option}-file' for option in options)} instead"
        log.warning("secrets_in_process_list", options=options, remedy=remedy)
    if options := exposed_files(settings):
        log.warning("secret_files_readable_by_all", options=options, remedy="chmod 600 these files")


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


def _drain_on_signals(server: Server) -> None:
    """Let the first SIGTERM or SIGINT drain the server, and the second end the process at once."""
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        if signalled:
            kill_children()
            end_resource_tracker()
            os._exit(1)
        signalled = True
        server.drain()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


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
            max_connections=max(1, min(settings.max_connections, _open_files() - _OTHER_FILES)),
            max_per_address=settings.max_connections_per_address,
        ),
        server.metrics.count_cut,
    )
    server.metrics.connections.set_function(lambda: connections.count)
    return uvicorn.Config(
        server.app,
        http=bounded_protocol(connections, lambda: server.admission.is_draining),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=settings.idle_timeout,
        timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
        # Behind a proxy the peer's address is in no decision of ours, so no header may change it.
        proxy_headers=False,
    )


def _listen(settings: Settings) -> socket.socket:
    """Bind the address. Raises ConfigurationError that says what is in the way."""
    try:
        if settings.uds:
            return _listen_unix(settings.uds)
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
        # Its connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        return listener
    except OSError as error:
        where = str(settings.uds) if settings.uds else f"{settings.host}:{settings.port}"
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        owner = _owner_of(settings.port) if "in use" in reason and not settings.uds else ""
        raise ConfigurationError(
            f"cannot listen on {where}: {reason}{owner}; choose another --{'uds' if settings.uds else 'port or --host'}"
        ) from None


def _listen_unix(path: Path) -> socket.socket:
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                # Left behind by a server that was killed.
                path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    # The file's mode is the access control: nobody else on the machine.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def _owner_of(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
            if listens and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def _url(settings: Settings, listener: socket.socket) -> str:
    if settings.uds:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def _raise_open_files() -> None:
    """Each stream is a file; the usual soft limit of 1024 is reached long before the engine's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

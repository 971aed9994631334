"""The server's socket: bound first, so that an address that cannot be had is told at once, and opened later."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from tokka.errors import ConfigurationError, TemporaryError, is_lasting
from tokka.settings import Settings

# Connections that wait to be accepted.
_BACKLOG = 2048
# Unsent bytes of a response that the kernel takes. By itself it takes 4 MB, and a client that does not read would seem
# to.
_UNSENT_BYTES = 64 << 10


@contextlib.contextmanager
def bound(settings: Settings) -> Iterator[socket.socket]:
    """Yield a socket that has the address and takes no connection yet; at the end give it back. Raises StartupError."""
    try:
        listener = _bind_unix(settings.uds) if settings.uds else _bind(settings.host, settings.port)
    except OSError as error:
        raise _refusal(settings, error) from None
    try:
        yield listener
    finally:
        listener.close()
        if settings.uds:
            settings.uds.unlink(missing_ok=True)


def open_for_connections(listener: socket.socket, settings: Settings) -> None:
    """Take connections from now on. Raises StartupError."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        # Another server has bound the same address meanwhile.
        raise _refusal(settings, error) from None


def url_of(listener: socket.socket, settings: Settings) -> str:
    if settings.uds:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Its connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _bind_unix(path: Path) -> socket.socket:
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
    return listener


def _refusal(settings: Settings, error: OSError) -> ConfigurationError | TemporaryError:
    where = str(settings.uds) if settings.uds else f"{settings.host}:{settings.port}"
    # A name that cannot be resolved has a number of another kind, and a text.
    is_unknown_name = isinstance(error, socket.gaierror)
    reason = os.strerror(error.errno).lower() if error.errno and not is_unknown_name else str(error)
    owner = _owner_of(settings.port) if "in use" in reason and not settings.uds else ""
    remedy = f"choose another --{'uds' if settings.uds else 'port or --host'}"
    message = f"cannot listen on {where}: {reason}{owner}; {remedy}"
    # A port may be given back, an address or a folder may come: at boot the network may be late.
    return ConfigurationError(message) if is_lasting(error) and not is_unknown_name else TemporaryError(message)


def _owner_of(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
            if listens and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""

"""The server's listening sockets. Binding comes first, so that an unusable address fails at once; listening later."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tokka.errors import ConfigurationError, TemporaryError, is_lasting
from tokka.settings import Settings

if TYPE_CHECKING:
    # Binding comes before the imports of the API, which take 0.6 s.
    from tokka.api.connections import Limits

# Maximum connections waiting to be accepted.
BACKLOG = 2048
# Handles of each socket. libuv accepts one connection per handle and turn of the event loop. A turn takes 20 ms on a
# busy server: with one handle, the last of a hundred new clients would wait for 2 s.
_HANDLES = 32
# Minimum allowed connections for each handle. The connections of one turn must stay few: at the limit they evict each
# other, and for lack of strangers idle connections with keys, before the server has read their requests.
_CONNECTIONS_PER_HANDLE = 64
# Maximum unsent response bytes that the kernel buffers. Its default is 4 MB, which hides a client that does not read.
_UNSENT_BYTES = 64 << 10
# Error numbers of an address family that this machine does not have.
_NO_SUCH_FAMILY = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@contextlib.contextmanager
def bound(settings: Settings) -> Iterator[list[socket.socket]]:
    """Yield bound sockets that do not listen yet, and close them at the end. Raises StartupError.

    A name with several addresses, like `localhost`, gets several sockets.
    """
    try:
        listeners = [_bind_unix(settings, settings.uds)] if settings.uds else _bind(settings.host, settings.port)
    except OSError as error:
        raise _refusal(settings, error) from None
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()
        if settings.uds:
            settings.uds.unlink(missing_ok=True)


def open_for_connections(listeners: Sequence[socket.socket], settings: Settings) -> None:
    """Start to accept connections. Raises StartupError."""
    try:
        for listener in listeners:
            listener.listen(BACKLOG)
    except OSError as error:
        # Another server may have started to listen on the same address since `bind`.
        raise _refusal(settings, error) from None


def handles_of(listeners: Sequence[socket.socket], limits: Limits) -> list[socket.socket]:
    """Return all handles of the sockets, the given ones included. The caller closes them."""
    allowed = min(limits.max_connections, limits.max_per_address or limits.max_connections)
    count = max(1, min(_HANDLES, allowed // _CONNECTIONS_PER_HANDLE))
    return [*listeners, *(listener.dup() for listener in listeners for _ in range(count - 1))]


def url_of(listeners: Sequence[socket.socket], settings: Settings) -> str:
    """Return the URL of the first socket."""
    if settings.uds:
        return f"unix:{settings.uds}"
    host, port = listeners[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(host: str, port: int) -> list[socket.socket]:
    """Bind every address of a name to the same port. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # IPv4 comes first: the log shows the first address.
    addresses = sorted(dict.fromkeys((family, address[0]) for family, _, _, _, address in found), key=_family_order)
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listeners.append(_bind_address(family, str(address), port))
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                missing = error
            else:
                port = listeners[0].getsockname()[1]
        if missing is not None and not listeners:
            raise missing
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _family_order(address: tuple[socket.AddressFamily, object]) -> bool:
    return address[0] != socket.AF_INET


def _bind_address(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and address != "::":
            # The name's IPv4 address has its own socket.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        elif family == socket.AF_INET6:
            # `::` must include IPv4, whatever the system's default is. Some systems do not support this.
            with contextlib.suppress(OSError):
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Accepted connections inherit this option.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener


def _bind_unix(settings: Settings, path: Path) -> socket.socket:
    group = None if settings.uds_group is None else _group_id(settings.uds_group)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                # A killed server left the file behind.
                path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    # The file's mode is the access control. Only the owner may connect until group and mode are set.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    try:
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(int(settings.uds_mode, 8))
    except OSError as error:
        listener.close()
        path.unlink(missing_ok=True)
        raise ConfigurationError(
            f"cannot give {path} the group {settings.uds_group} and the mode {settings.uds_mode}: "
            f"{os.strerror(error.errno or 0).lower()}; run the server as a member of that group"
        ) from None
    return listener


def _group_id(group: str) -> int:
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigurationError(f"--uds-group {group}: group not found; give its name or number") from None


def _refusal(settings: Settings, error: OSError) -> ConfigurationError | TemporaryError:
    where = str(settings.uds) if settings.uds else f"{settings.host}:{settings.port}"
    # The number of a gaierror is not an errno value.
    is_unknown_name = isinstance(error, socket.gaierror)
    if is_unknown_name:
        reason = f"the name {settings.host} has no address here"
    else:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
    owner = _owner_of(settings.port) if "in use" in reason and not settings.uds else ""
    remedy = f"choose another --{'uds' if settings.uds else 'port or --host'}"
    message = f"cannot listen on {where}: {reason}{owner}; {remedy}"
    # A later start may succeed: a port may become free, and at boot an address or a folder may appear late.
    return ConfigurationError(message) if is_lasting(error) and not is_unknown_name else TemporaryError(message)


def _owner_of(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
            if listens and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""

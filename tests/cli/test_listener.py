"""The server's sockets: IPv4 and IPv6 addresses, host names, and the permissions of a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from tests.program import running
from tokka.api.connections import Limits
from tokka.cli.listener import bound, handles_of, open_for_connections, url_of
from tokka.errors import ConfigurationError, TemporaryError
from tokka.settings import Settings


def settings(**values: Any) -> Settings:
    return Settings(engine="fake", port=0, **values)


def limits(max_connections: int = 4096, max_per_address: int | None = None) -> Limits:
    return Limits(1000, 1, 1, max_connections, max_per_address)


def found(*families: tuple[socket.AddressFamily, str]) -> Any:
    """Return a resolver that finds these addresses for every name."""

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in families]

    return resolve


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def another_group() -> grp.struct_group:
    """Return a group for a file: root may use any group, other users one of their own."""
    mine = set(os.getgroups())
    usable = [one for one in grp.getgrall() if os.geteuid() == 0 or one.gr_gid in mine]
    return next((one for one in usable if one.gr_gid != os.getegid()), grp.getgrgid(os.getegid()))


def test_every_ipv6_address_means_every_ipv4_address_too() -> None:
    with running("--engine", "fake", "--host", "::", "--no-auth") as program:
        port = program.url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{port}/v1/models").status_code == 200


def test_name_is_bound_on_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")))
    with bound(settings(host="localhost")) as listeners:
        names = [listener.getsockname()[:2] for listener in listeners]
        port = names[0][1]
        assert names == [("127.0.0.1", port), ("::1", port)]
        assert url_of(listeners, settings()) == f"http://127.0.0.1:{port}"


def test_name_with_an_ipv6_address_alone_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found((socket.AF_INET6, "::1")))
    with bound(settings(host="six.example")) as listeners:
        assert [listener.getsockname()[0] for listener in listeners] == ["::1"]


def test_family_that_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # An address of another machine causes the same error as a family without an interface.
    monkeypatch.setattr(socket, "getaddrinfo", found((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "2001:db8::1")))
    with bound(settings(host="localhost")) as listeners:
        assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1"]


def test_listener_reports_a_host_name_without_an_address() -> None:
    with pytest.raises(TemporaryError, match=r"the name no-such-host\.invalid has no address here"):
        bound(settings(host="no-such-host.invalid", no_auth=True)).__enter__()


def test_unix_socket_is_open_to_its_group(tmp_path: Path) -> None:
    with bound(settings(uds=tmp_path / "tokka.sock")):
        assert mode_of(tmp_path / "tokka.sock") == 0o660


def test_unix_socket_gets_its_mode_and_group(tmp_path: Path) -> None:
    path, group = tmp_path / "tokka.sock", another_group()
    for name in (str(group.gr_gid), group.gr_name):
        with bound(settings(uds=path, uds_mode="0600", uds_group=name)):
            assert (mode_of(path), path.stat().st_gid) == (0o600, group.gr_gid)


def test_unix_socket_of_an_unknown_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--uds-group no-such-group"):
        bound(settings(uds=tmp_path / "tokka.sock", uds_group="no-such-group")).__enter__()


def test_unix_socket_of_a_foreign_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ConfigurationError, match="operation not permitted; run the server as a member of that group"):
        bound(settings(uds=tmp_path / "tokka.sock", uds_group="0")).__enter__()
    assert not (tmp_path / "tokka.sock").exists()


@pytest.mark.parametrize(("value", "mode"), [("0660", "0660"), ("666", "666"), ("0o600", "600"), (0o660, "0660")])
def test_uds_mode_is_octal(value: object, mode: str) -> None:
    assert settings(uds_mode=value).uds_mode == mode


@pytest.mark.parametrize("value", ["rw-rw----", "0440", "1660", "0668", ""])
def test_uds_mode_is_refused_if_it_is_none(value: str) -> None:
    with pytest.raises(ValueError, match="three octal digits"):
        settings(uds_mode=value)


async def turns_until_accepted(listeners: list[socket.socket], count: int) -> int:
    """Return the turns of the loop until `count` clients that wait already are accepted."""
    accepted = 0

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal accepted
            accepted += 1
            transport.close()

    servers = [await asyncio.get_running_loop().create_server(Accepted, sock=one) for one in listeners]
    turns = 0
    while accepted < count:
        await asyncio.sleep(0)
        turns += 1
    for server in servers:
        server.close()
    return turns


def test_many_clients_at_once_are_accepted_within_a_few_turns() -> None:
    with bound(settings(host="127.0.0.1")) as listeners, contextlib.ExitStack() as clients:
        open_for_connections(listeners, settings())
        for _ in range(64):
            clients.enter_context(socket.create_connection(listeners[0].getsockname()))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(turns_until_accepted(handles_of(listeners, limits()), 64)) < 10


@pytest.mark.parametrize(
    ("allowed", "handles"),
    [
        ({}, 32),
        ({"max_connections": 640}, 10),
        ({"max_connections": 20}, 1),
        ({"max_connections": 10_000, "max_per_address": 128}, 2),
    ],
)
def test_few_connections_are_accepted_in_a_turn_when_few_are_allowed(allowed: dict[str, int], handles: int) -> None:
    with bound(settings(host="127.0.0.1")) as listeners:
        made = handles_of(listeners, limits(**allowed))
        assert len(made) == handles
        for handle in made[1:]:
            handle.close()

"""Strangers at the gateway's door: each is turned away, and workers that joined notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.contract import ask, collect
from tests.fleet.gateways import Gateway, gateway, worker
from tests.program import TURN_BOUND_S
from tokka import __version__
from tokka.core import Sampling
from tokka.errors import ConfigurationError
from tokka.fleet import listener, stranger
from tokka.fleet.token_file import ensure_token_file
from tokka.observability.loop_turns import LoopTurns
from tokka.protocol.worker.frames import HANDSHAKE_BYTES, MAX_BYTES, frame_of
from tokka.protocol.worker.handshake import PROTOCOL, Hello, Refusal, Welcome, payload_of, reply_of

LONG = Sampling(max_tokens=400, ignore_eos=True)


@pytest.fixture
async def joined(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with one ready worker."""
    async with gateway(tmp_path) as opened, worker(opened):
        await opened.ready()
        yield opened


async def dial(opened: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(opened.address.host, opened.address.port)


async def closed(reader: asyncio.StreamReader, within_s: float = 2) -> bytes:
    """Return all that the gateway sends until it closes the connection."""
    async with asyncio.timeout(within_s):
        with contextlib.suppress(ConnectionResetError):
            return await reader.read()
    return b""


def hello(opened: Gateway, **changes: Any) -> Hello:
    values: dict[str, Any] = {"token": opened.token, "worker": "w2", "model": "fake", "node": "n", "pid": 1}
    return Hello(**values | changes)


async def answer(opened: Gateway, said: Hello) -> Welcome | Refusal:
    """Say hello and return the gateway's answer."""
    reader, writer = await dial(opened)
    writer.write(frame_of(payload_of(said)))
    size = int.from_bytes(await reader.readexactly(4), "big")
    reply = reply_of(await reader.readexactly(size))
    writer.close()
    return reply


async def serves(opened: Gateway) -> None:
    """Check that the worker which has joined answers."""
    result = await collect((await opened.ready()).engine, ask())
    assert result.usage.completion_tokens == 12


async def test_worker_without_the_token_is_refused(joined: Gateway) -> None:
    reply = await answer(joined, hello(joined, token="guess"))
    assert isinstance(reply, Refusal)
    assert "token" in reply.reason
    assert list(joined.listener.workers) == ["w1"]


async def test_worker_of_another_protocol_is_refused_with_versions(joined: Gateway) -> None:
    reply = await answer(joined, hello(joined, protocol=PROTOCOL + 1, version="9.9.9"))
    assert isinstance(reply, Refusal)
    assert "9.9.9" in reply.reason
    assert __version__ in reply.reason


async def test_worker_of_another_version_joins_with_the_same_protocol(joined: Gateway) -> None:
    assert isinstance(await answer(joined, hello(joined, version="9.9.9")), Welcome)


async def test_worker_of_another_model_is_refused(tmp_path: Path) -> None:
    def accepts(said: Hello) -> str | None:
        return None if said.model == "poro" else f"the gateway has no model {said.model}"

    async with gateway(tmp_path, accepts=accepts) as opened:
        assert await answer(opened, hello(opened)) == Refusal("the gateway has no model fake")
        with pytest.raises(ConfigurationError, match="the gateway has no model fake"):
            async with worker(opened) as refused:
                await refused.run()


@pytest.mark.parametrize("size", [HANDSHAKE_BYTES + 1, MAX_BYTES, 1 << 30, (1 << 32) - 1])
async def test_a_large_first_frame_is_refused_by_its_length(joined: Gateway, size: int) -> None:
    reader, writer = await dial(joined)
    writer.write(size.to_bytes(4, "big"))
    assert await closed(reader) == b""
    writer.close()
    await serves(joined)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x04abcd", b"\x00\x00\x00\x00", b"\x16\x03"])
async def test_other_programs_get_no_answer(joined: Gateway, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stranger, "HANDSHAKE_S", 0.2)
    reader, writer = await dial(joined)
    writer.write(data)
    assert await closed(reader) == b""
    writer.close()
    await serves(joined)


@pytest.mark.parametrize("payload", [b"\xc1", b"\x91\x93\x00\x01\x02", b"\x91\x91\x63", b"", os.urandom(1000)])
async def test_a_broken_frame_ends_only_its_own_worker(joined: Gateway, payload: bytes) -> None:
    reader, writer = await dial(joined)
    writer.write(frame_of(payload_of(hello(joined))))
    other = await joined.worker(lambda worker: worker.hello.worker == "w2")
    running = asyncio.create_task(collect((await joined.ready()).engine, ask(sampling=LONG)))
    writer.write(frame_of(payload))
    await joined.state(other, "gone", 2)
    await closed(reader)
    writer.close()
    assert (await running).usage.completion_tokens == 400
    assert list(joined.listener.workers) == ["w1"]


async def test_a_frame_of_1_gib_ends_only_its_own_worker(joined: Gateway) -> None:
    reader, writer = await dial(joined)
    writer.write(frame_of(payload_of(hello(joined))))
    other = await joined.worker(lambda worker: worker.hello.worker == "w2")
    writer.write((1 << 30).to_bytes(4, "big") + bytes(1 << 20))
    await joined.state(other, "gone", 2)
    await closed(reader)
    writer.close()
    await serves(joined)


@pytest.mark.bytecodes
async def test_a_flood_of_connections_keeps_no_worker_out(joined: Gateway) -> None:
    turns = LoopTurns(lambda _turn: None)
    turns.start()
    running = asyncio.create_task(collect((await joined.ready()).engine, ask(sampling=LONG)))
    flood = [await dial(joined) for _ in range(300)]
    assert isinstance(await answer(joined, hello(joined)), Welcome)
    # The oldest were closed at once; a program's files do not run out.
    assert await closed(flood[0][0]) == b""
    assert len(joined.listener._strangers) <= 64
    assert (await running).usage.completion_tokens == 400
    for _, writer in flood:
        writer.close()
    turns.close()
    # Nothing else waited, and this process is also the flood.
    assert turns.longest_s < TURN_BOUND_S


async def test_a_silent_connection_is_closed(joined: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stranger, "HANDSHAKE_S", 0.1)
    reader, writer = await dial(joined)
    assert await closed(reader) == b""
    writer.close()


async def test_a_silent_connection_is_closed_before_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stranger, "HANDSHAKE_S", 0.1)
    async with gateway(tmp_path, tls=True) as opened:
        for first in (b"", b"\x16\x03\x01", b"\x00\x00\x00\x04abcd"):
            reader, writer = await dial(opened)
            writer.write(first)
            await closed(reader)
            writer.close()
        assert not opened.listener._strangers


async def test_worker_trusts_no_other_certificate(tmp_path: Path) -> None:
    async with gateway(tmp_path / "true", tls=True) as opened:
        other = ensure_token_file(tmp_path / "other", tls=True)
        context = other.client_context()
        assert context is not None
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(opened.address.host, opened.address.port, ssl=context)


async def test_worker_sends_no_plain_token_to_another_host(tmp_path: Path) -> None:
    async with gateway(tmp_path) as opened:
        away = opened.address.__class__("192.0.2.1", 7400)
        with pytest.raises(ConfigurationError, match="not on loopback"):
            async with worker(opened, gateways=[away]) as refused:
                await refused.run()


async def test_worker_that_joins_again_replaces_its_old_connection(joined: Gateway) -> None:
    first = await joined.ready()
    assert isinstance(await answer(joined, hello(joined, worker="w1")), Welcome)
    await joined.state(first, "gone", 2)
    # The real one comes back.
    assert (await joined.ready()).engine is not first.engine


async def test_lack_of_open_files_is_waited_out(joined: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_ACCEPT_AGAIN_S", 0.2)

    class Exhausted:
        """A listening socket of a process without a free file."""

        def __init__(self, real: socket.socket) -> None:
            self._real = real
            self.attempts = 0

        def fileno(self) -> int:
            return self._real.fileno()

        def accept(self) -> tuple[socket.socket, Any]:
            self.attempts += 1
            if self.attempts < 3:
                raise OSError(errno.EMFILE, "too many open files")
            return self._real.accept()

        def close(self) -> None:
            self._real.close()

    opened = joined.listener
    (real,) = opened._listeners
    asyncio.get_running_loop().remove_reader(real)
    exhausted: Any = Exhausted(real)
    opened._listeners[:] = [exhausted]
    opened._watch(exhausted)
    assert isinstance(await answer(joined, hello(joined)), Welcome)
    # The attempts are apart, and do not spin.
    assert exhausted.attempts <= 4
    await serves(joined)


async def test_gateway_has_a_maximum_of_workers(joined: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_MOST_WORKERS", 1)
    assert await answer(joined, hello(joined)) == Refusal("the gateway has 1 workers, its maximum")

"""A connection: slices, faults, silence, its end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.fleet.gateways import until
from tokka.fleet import connection as module
from tokka.fleet.connection import Connection, Lost
from tokka.protocol.worker import messages
from tokka.protocol.worker.frames import frame_of


class Transport:
    """Keeps the written bytes, and whether reading is paused."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_paused = self.is_closed = False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Peer:
    """A connection with such a transport, its payloads and its end."""

    def __init__(self, work_s: float = 0.0) -> None:
        self.payloads: list[bytes] = []
        self.lost: list[Lost] = []
        self.transport: Any = Transport()
        self._work_s = work_s
        self.connection = Connection(self.take, self.lost.append)
        self.connection.connection_made(self.transport)

    def take(self, payload: bytearray) -> None:
        if payload == b"fault":
            raise KeyError("a fault of ours")
        until_s = time.monotonic() + self._work_s
        while time.monotonic() < until_s:
            pass
        self.payloads.append(bytes(payload))


async def test_long_work_leaves_turns_to_others() -> None:
    peer = Peer(work_s=0.004)
    peer.connection.data_received(b"".join(frame_of(bytes([number])) for number in range(8)))
    first = len(peer.payloads)
    assert first < 8
    # The rest of the bytes waits in the socket.
    assert peer.transport.is_paused
    turns = 0
    while len(peer.payloads) < 8:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 2
    assert peer.payloads == [bytes([number]) for number in range(8)]
    assert not peer.transport.is_paused


async def test_end_comes_after_the_frames_before_it() -> None:
    peer = Peer(work_s=0.004)
    peer.connection.data_received(b"".join(frame_of(bytes([number])) for number in range(8)))
    peer.transport.is_closed = True
    peer.connection.connection_lost(None)
    assert not peer.lost
    await until(lambda: bool(peer.lost))
    assert len(peer.payloads) == 8
    assert peer.lost == [Lost("the peer closed the connection", by_peer=True)]


async def test_fault_of_ours_ends_the_connection() -> None:
    peer = Peer()
    peer.connection.data_received(frame_of(b"a") + frame_of(b"fault") + frame_of(b"b"))
    assert peer.payloads == [b"a"]
    assert peer.transport.is_closed
    peer.connection.connection_lost(None)
    assert peer.lost == [Lost("an internal error: KeyError")]


async def test_message_that_cannot_be_written_ends_the_connection() -> None:
    peer = Peer()
    peer.connection.put(messages.Texts(1, ["\ud800"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert peer.transport.is_closed
    assert not peer.transport.written


async def test_messages_of_a_turn_are_one_write() -> None:
    peer = Peer()
    sent = [messages.Delta(number, 0, "a", [1], "") for number in range(32)]
    for message in sent:
        peer.connection.put(message)
    await asyncio.sleep(0)
    (frame,) = peer.transport.written
    assert messages.from_worker(frame[4:]) == sent


async def test_many_messages_of_a_turn_are_several_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRAME_MESSAGES", 10)
    peer = Peer()
    for number in range(25):
        peer.connection.put(messages.Delta(number, 0, "a", [1], ""))
    await asyncio.sleep(0)
    assert [len(messages.from_worker(frame[4:])) for frame in peer.transport.written] == [10, 10, 5]


async def test_nothing_is_written_after_the_end() -> None:
    peer = Peer()
    peer.connection.abort("enough")
    peer.connection.put(messages.Pong())
    peer.connection.send(messages.Pong())
    await asyncio.sleep(0)
    assert not peer.transport.written


async def test_silence_is_measured_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.02)
    peer = Peer()
    looks: list[float] = []
    peer.connection.watch(looks.append)
    await until(lambda: looks[-1] > 0.1)
    peer.connection.data_received(frame_of(b"a"))
    await until(lambda: looks[-1] < 0.1)
    peer.connection.connection_lost(None)
    seen = len(looks)
    await asyncio.sleep(0.06)
    assert len(looks) == seen


async def test_peer_is_not_blamed_when_this_process_was_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.05)
    peer = Peer()
    looks: list[float] = []
    peer.connection.watch(looks.append)
    time.sleep(0.3)  # noqa: ASYNC251 - the process is held up
    await until(lambda: len(looks) > 1)
    assert looks[1] < 0.1


async def test_frames_behind_the_one_that_ended_it_are_dropped() -> None:
    peer = Peer()

    def take(payload: bytearray) -> None:
        peer.take(payload)
        peer.connection.close("enough")

    peer.connection.on_payload = take
    peer.connection.data_received(frame_of(b"a") + frame_of(b"b"))
    peer.connection.data_received(frame_of(b"c"))
    assert peer.payloads == [b"a"]


@pytest.mark.parametrize(
    ("error", "by_peer"),
    [(None, True), (ConnectionResetError(), True), (BrokenPipeError(), True), (TimeoutError("timed out"), False)],
)
async def test_end_of_the_peers_process_is_told_from_a_lost_network(error: Exception | None, by_peer: bool) -> None:
    peer = Peer()
    peer.connection.connection_lost(error)
    assert [lost.by_peer for lost in peer.lost] == [by_peer]

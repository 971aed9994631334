"""The limits of a WebSocket: size, memory, time and number of messages and frames; disconnects and drains."""

from __future__ import annotations

import json
import socket as sockets
from collections.abc import Callable, Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from tests.api.listening import listening, on_uvloop
from tests.program import TENANTS, Program, eventually, running
from tests.sockets import PATH, RawSocket, Socket, closing_code, frame, opened
from tests.wire import metric
from tokka.api import response_socket

LIMITS = ("--max-body-size", "64KiB", "--body-timeout", "1", "--idle-timeout", "3", "--body-memory", "150KB")
SLOW = ("--engine", "fake", "--engine-arg", "token_delay_s=0.05")


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running("--engine", "fake", "--engine-arg", "token_delay_s=0.01", *LIMITS) as program:
        yield program


def test_message_beyond_the_size_of_a_body_is_refused(program: Program) -> None:
    with opened(program, None) as socket:
        assert socket.refusal("x" * (64 << 10)) == (413, "request_too_large", None)
        assert closing_code(socket) == 1009


def test_long_frame_is_refused_before_it_is_complete(program: Program) -> None:
    raw = RawSocket(program)
    raw.send(frame(b"x" * (1 << 20))[: 100 << 10])
    answer = raw.rest()
    assert b"request_too_large" in answer
    assert b"413" in answer


def test_messages_being_received_share_the_memory_of_bodies(program: Program) -> None:
    raws = [RawSocket(program) for _ in range(3)]
    for raw in raws:
        raw.send(frame(b"x" * (60 << 10))[: 50 << 10])
    answers = [raw.rest() for raw in raws]
    assert sum(b"server_overloaded" in answer for answer in answers) >= 1
    # The others were too slow. All memory is free again.
    with opened(program, None) as socket:
        assert socket.turn("x" * 3000)["status"] == "completed"


def test_slow_message_is_refused(program: Program) -> None:
    raw = RawSocket(program)
    raw.send(frame(b"x" * 100)[:50])
    answer = raw.rest()
    assert b"request_timeout" in answer
    assert b"408" in answer


def test_empty_fragments_count_as_memory(program: Program) -> None:
    raw = RawSocket(program)
    raw.send(frame(b"", fin=False))
    for _ in range(20):
        raw.send(frame(b"", Opcode.CONT, fin=False) * 100)
    assert b"request_too_large" in raw.rest()


def test_idle_connection_is_closed(program: Program) -> None:
    with opened(program, None) as socket:
        assert socket.turn()["status"] == "completed"
        socket.connection.ping()
        assert closing_code(socket) == 1001


def leave(socket: Socket) -> None:
    socket.connection.close()


def cut_off(socket: Socket) -> None:
    socket.connection.socket.shutdown(sockets.SHUT_RDWR)


@pytest.mark.parametrize("go", [leave, cut_off])
def test_disconnect_aborts_the_request(go: Callable[[Socket], None]) -> None:
    with running(*SLOW, "--engine-arg", f"answer={'x' * 4000}") as program, program.client() as client:
        with opened(program, None) as socket:
            socket.ask()
            while socket.event()["type"] != "response.output_text.delta":
                pass
            assert metric(client, "tokka_requests_running") == 1
            go(socket)
            eventually(lambda: metric(client, "tokka_requests_running") == 0, within_s=2)
        eventually(lambda: any(line.get("outcome") == "aborted" for line in program.log), within_s=5)
        assert program.stop() == 0
        assert program.stderr() == ""


def test_silent_response_sends_pings() -> None:
    options = ("--engine-arg", "prefill_delay_s=2.5", "--keep-alive-interval", "1")
    with running("--engine", "fake", *options) as program:
        raw = RawSocket(program)
        body = {"type": "response.create", "model": program.model, "input": "Hei", "store": False}
        raw.send(frame(json.dumps(body).encode()))
        data = b""
        while b"response.completed" not in data:
            data += raw.socket.recv(65536)
        # An empty ping.
        assert b"\x89\x00" in data
        raw.socket.close()


def test_drain_completes_the_request_and_closes() -> None:
    with running(*SLOW) as program, opened(program, None) as busy, opened(program, None) as idle:
        busy.ask()
        busy.event()
        program.process.terminate()
        eventually(lambda: httpx.get(f"{program.url}/readyz").status_code == 503, within_s=2)
        assert idle.refusal()[:2] == (503, "draining")
        assert busy.events()[-1]["type"] == "response.completed"
        assert (closing_code(busy), closing_code(idle)) == (1001, 1001)
        assert program.process.wait(10) == 0
        assert program.stderr() == ""


def test_idle_connection_makes_room_for_a_new_one() -> None:
    keys = ("--api-key", TENANTS[0], "--max-connections", "2")
    with running("--engine", "fake", *keys) as program, opened(program) as first, opened(program) as second:
        assert first.turn()["status"] == second.turn()["status"] == "completed"
        with opened(program) as third:
            assert third.turn()["status"] == "completed"
        assert closing_code(first) is None
        assert second.turn()["status"] == "completed"


def test_old_connection_gets_no_more_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_socket, "_LIFE_S", -1.0)

    async def test() -> None:
        # Imported here: the other tests use the blocking client.
        from websockets.asyncio.client import connect

        async with listening() as (port, _, cuts):
            async with connect(f"ws://127.0.0.1:{port}{PATH}", proxy=None) as connection:
                await connection.send(json.dumps({"type": "response.create", "model": "fake", "input": "x"}))
                event = json.loads(await connection.recv())
                assert (event["status"], event["error"]["code"]) == (400, "websocket_connection_limit_reached")
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
            assert cuts == []

    on_uvloop(test)

"""The WebSocket form of /v1/responses, served in this process: frames, turns and handshakes."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from websockets.frames import Opcode

from tests.api.listening import listening, on_uvloop
from tests.sockets import PATH, RawSocket, closing_code, frame, opened

CODE = "previous_response_not_found"


@dataclass(frozen=True, slots=True)
class Here:
    """A server in a thread of this process."""

    url: str
    model: str = "fake"


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    began: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def serve() -> None:
        stop = asyncio.Event()
        async with listening() as (port, _, _):
            began.put((port, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=on_uvloop, args=(serve,))
    thread.start()
    port, loop, stop = began.get(timeout=30)
    yield Here(f"http://127.0.0.1:{port}")
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)


def test_unstored_conversation_goes_on(here: Here) -> None:
    with opened(here, None) as socket:
        first = socket.turn()
        second = socket.turn("And?", previous_response_id=first["id"])
        assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        assert socket.refusal(previous_response_id=first["id"])[:2] == (400, CODE)


def test_failed_continuation_forgets_the_response(here: Here) -> None:
    with opened(here, None) as socket:
        first = socket.turn()
        assert socket.refusal(previous_response_id=first["id"], temperature=3)[0] == 400
        assert socket.refusal(previous_response_id=first["id"])[1] == CODE


def test_next_request_waits_for_its_turn(here: Here) -> None:
    with opened(here, None) as socket:
        for place in ("1", "2"):
            socket.ask(metadata={"place": place})
        assert [socket.events()[-1]["response"]["metadata"]["place"] for _ in range(2)] == ["1", "2"]


def test_third_request_at_once_closes_the_connection(here: Here) -> None:
    with opened(here, None) as socket:
        for _ in range(3):
            socket.ask()
        assert closing_code(socket) == 1008


def test_other_messages_are_refused(here: Here) -> None:
    with opened(here, None) as socket:
        for message in ("no JSON", "[]", '{"type": "response.cancel"}'):
            socket.connection.send(message)
            assert socket.event()["status"] == 400
        assert socket.turn()["status"] == "completed"


def test_message_in_fragments_is_one_request(here: Here) -> None:
    body = json.dumps({"type": "response.create", "model": here.model, "store": False, "input": "Hei"}).encode()
    raw = RawSocket(here)
    raw.send(frame(body[:10], fin=False))
    raw.send(frame(b"are you there", Opcode.PING))
    raw.send(frame(body[10:20], Opcode.CONT, fin=False) + frame(body[20:], Opcode.CONT))
    data = b""
    while b"response.completed" not in data:
        data += raw.socket.recv(65536)
    assert b"are you there" in data
    raw.socket.close()


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\xff\xff\xff\xff\xff\xff", b"\x03\xea"),
        (frame(b"", Opcode.PONG) * 20_000, b"too many frames"),
    ],
    ids=["malformed", "many"],
)
def test_bad_frames_close_the_connection(here: Here, data: bytes, answer: bytes) -> None:
    raw = RawSocket(here)
    raw.send(data)
    assert answer in raw.rest()


def test_client_may_close_at_any_time(here: Here) -> None:
    with opened(here, None) as socket:
        socket.ask()
        socket.event()
    with opened(here, None) as socket:
        assert socket.turn()["status"] == "completed"
        socket.connection.send(json.dumps({"type": "response.create", "model": "x" * 9}))
        assert socket.event()["status"] == 400
        socket.connection.close()
        assert closing_code(socket) == 1000


def test_handshake_must_be_valid(here: Here) -> None:
    plain = httpx.get(here.url + PATH)
    assert (plain.status_code, plain.headers["allow"]) == (405, "POST")
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert httpx.get(here.url + PATH, headers=headers).status_code == 400

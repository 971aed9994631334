"""The protocol in this process: deadlines exclude our own delays, ended requests are freed, connections have ranks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.listening import listening, on_uvloop, until
from tests.contract.conftest import serving
from tests.wire import raw_completion
from tokka.api.connections import Connections, Rank
from tokka.api.deadline import _HELD_UP_S
from tokka.api.http_cycle import Cycle
from tokka.api.http_protocol import BoundedProtocol
from tokka.api.http_refusal import HeadersTooLarge, response_of
from tokka.api.intake import MOST, Intake
from tokka.core import ANONYMOUS, Key
from tokka.engine.fake import FakeOptions

LIMIT_S = 0.3
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = raw_completion({"model": "fake", "prompt": "x", "max_tokens": 3, "stream": True})


class Wire:
    """A client without an event loop, so that it works while the server's loop is blocked."""

    def __init__(self, port: int, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))

    async def read(self) -> bytes:
        return await asyncio.to_thread(self.socket.recv, 65536)

    async def read_bytes(self, count: int) -> None:
        """Read at least `count` bytes. Fails if the server closes before."""
        while count > 0:
            piece = await self.read()
            assert piece, f"closed with {count} bytes to come"
            count -= len(piece)


async def held_up(meanwhile: Callable[[], None]) -> None:
    """Block the loop for longer than a time limit and its tolerance, then call `meanwhile`.

    This runs in a socket's callback: after it, the loop runs its timers before it reads data that arrived meanwhile.
    """
    loop = asyncio.get_running_loop()
    began, held_up = asyncio.Event(), socket.socketpair()

    def hold_up() -> None:
        loop.remove_reader(held_up[0])
        time.sleep(LIMIT_S + _HELD_UP_S + 0.2)
        meanwhile()
        began.set()

    loop.add_reader(held_up[0], hold_up)
    held_up[1].send(b"x")
    await began.wait()
    for one in held_up:
        one.close()


def alive() -> int:
    # Not `isinstance`: it asks objects for their class, and some of torch's then warn.
    return sum(issubclass(type(one), BoundedProtocol | Cycle) for one in gc.get_objects())


def protocols(connections: Connections) -> list[BoundedProtocol]:
    return [one for one in connections._ranks if isinstance(one, BoundedProtocol)]


def test_burst_of_requests_begins_over_several_iterations() -> None:
    clients = 3 * MOST
    iterations, begun = 0, list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(iterations)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    def count() -> None:
        nonlocal iterations
        iterations += 1
        asyncio.get_running_loop().call_soon(count)

    async def test() -> None:
        async with listening(app) as (port, connections, _):
            wires = [Wire(port) for _ in range(clients)]
            await until(lambda: connections.count == clients)
            count()
            for wire in wires:
                wire.socket.sendall(GET)
            for wire in wires:
                assert (await wire.read()).startswith(b"HTTP/1.1 204 ")
                wire.socket.close()

    on_uvloop(test)
    assert len(begun) == clients
    assert max(Counter(begun).values()) == MOST


def test_requests_of_a_lost_proxy_end_over_several_iterations() -> None:
    clients = 3 * MOST
    iterations, waiting, ended = 0, 0, list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal waiting
        waiting += 1
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.append(iterations)

    def count() -> None:
        nonlocal iterations
        iterations += 1
        asyncio.get_running_loop().call_soon(count)

    async def test() -> None:
        async with listening(app) as (port, connections, _):
            wires = [Wire(port) for _ in range(clients)]
            for wire in wires:
                wire.socket.sendall(GET)
            await until(lambda: waiting == clients)
            count()
            for protocol in protocols(connections):
                protocol.transport.abort()
            await until(lambda: len(ended) == clients)
            for wire in wires:
                wire.socket.close()

    on_uvloop(test)
    assert max(Counter(ended).values()) == MOST


def test_request_that_waits_in_the_intake_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[Callable[[], None]] = []

    def begin(_: Intake, read: Callable[[], None]) -> bool:
        waiting.append(read)
        return False

    monkeypatch.setattr(Intake, "begin", begin)

    async def test() -> None:
        async with listening(limit_s=LIMIT_S) as (port, connections, cuts):
            wire = Wire(port)
            wire.socket.sendall(GET)
            await until(lambda: bool(waiting))
            (one,) = protocols(connections)
            assert connections._ranks[one] is not Rank.STRANGER
            await asyncio.sleep(2 * LIMIT_S)
            waiting[0]()
            assert (await wire.read()).startswith(b"HTTP/1.1 200 OK")
            assert cuts == []
            wire.socket.close()

    on_uvloop(test)


def test_refusal_under_an_alias_has_the_form_of_its_api() -> None:
    answer = response_of(HeadersTooLarge(65536), b"/openai/v1/messages?beta=true")
    assert b'{"type":"error"' in answer
    assert b"\r\nrequest-id: req_" in answer


def test_headers_that_came_while_we_were_held_up_are_in_time() -> None:
    async def test() -> None:
        async with listening(limit_s=LIMIT_S) as (port, connections, cuts):
            wire = Wire(port)
            wire.socket.sendall(GET[:-10])
            await until(lambda: any(one._head_bytes for one in protocols(connections)))
            await held_up(lambda: wire.socket.sendall(GET[-10:]))
            assert (await wire.read()).startswith(b"HTTP/1.1 200 OK")
            assert cuts == []
            wire.socket.close()

    on_uvloop(test)


def test_headers_that_do_not_come_after_that_either_are_late() -> None:
    async def test() -> None:
        async with listening(limit_s=LIMIT_S) as (port, connections, cuts):
            wire = Wire(port)
            wire.socket.sendall(GET[:-10])
            await until(lambda: any(one._head_bytes for one in protocols(connections)))
            await held_up(lambda: None)
            assert (await wire.read()).startswith(b"HTTP/1.1 408 ")
            assert cuts == ["header_timeout"]
            wire.socket.close()

    on_uvloop(test)


def test_answer_that_was_read_while_we_were_held_up_is_in_time() -> None:
    size = 4 << 20

    async def large(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size})

    async def test() -> None:
        async with listening(large, limit_s=LIMIT_S) as (port, connections, cuts):
            wire = Wire(port, receive_bytes=4096)
            wire.socket.sendall(GET)
            await until(lambda: any(one.flow.write_paused for one in protocols(connections)))
            got = 0

            def read_all_that_came() -> None:
                nonlocal got
                wire.socket.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    while True:
                        got += len(wire.socket.recv(65536))

            await held_up(read_all_that_came)
            wire.socket.settimeout(10)
            await wire.read_bytes(size - got)
            assert cuts == []
            wire.socket.close()

    on_uvloop(test)


@pytest.mark.parametrize("request_", [GET, GET.replace(b"1.1", b"1.0"), STREAM])
def test_finished_request_is_freed_without_the_collector(request_: bytes) -> None:
    async def test() -> None:
        async with listening() as (port, connections, _):

            async def ask() -> None:
                wire = Wire(port)
                wire.socket.sendall(request_)
                assert await wire.read()
                wire.socket.close()
                await until(lambda: connections.count == 0)

            await ask()
            gc.collect()
            gc.disable()
            try:
                before = alive()
                for _ in range(20):
                    await ask()
                # The last request may not be freed yet.
                assert alive() <= before + 2
            finally:
                gc.enable()

    on_uvloop(test)


def test_failure_behind_a_client_that_has_left_raises_no_more() -> None:
    gone = asyncio.Event()

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await gone.wait()
        raise ValueError("a fault of the application")

    async def test() -> None:
        raised: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        async with listening(failing) as (port, connections, _):
            wire = Wire(port)
            wire.socket.sendall(POST + b"1")
            assert await wire.read()
            wire.socket.close()
            await until(lambda: connections.count == 0)
            gone.set()
        gc.collect()
        assert raised == []

    on_uvloop(test)


# -- the eviction rank of a connection

POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
KEYED = Key("key-1", "key-1", frozenset({"inference"}))
LARGE = 4 << 20


class App:
    """An application that sends `size` bytes once `may_answer` is set. Without a `key`, its client is a stranger."""

    def __init__(self, key: Key | None = None, size: int = 2) -> None:
        self.key = key
        self.size = size
        self.may_answer = asyncio.Event()
        self.began = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.key:
            scope["state"]["on_authenticated"](self.key)
        self.began.set()
        await self.may_answer.wait()
        headers = [(b"content-length", str(self.size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * self.size})


async def rank_is(connections: Connections, rank: Rank | None) -> None:
    await until(lambda: list(connections._ranks.values()) == [rank])


@pytest.mark.parametrize(
    ("key", "receiving", "answering", "delivering", "waiting"),
    [
        (None, Rank.PENDING, Rank.PENDING, Rank.UNREAD, Rank.STRANGER),
        (ANONYMOUS, Rank.PENDING, None, Rank.UNREAD, Rank.IDLE),
        (KEYED, None, None, None, Rank.IDLE),
    ],
)
def test_connection_has_the_rank_of_its_stage(
    key: Key | None, receiving: Rank | None, answering: Rank | None, delivering: Rank | None, waiting: Rank
) -> None:
    async def test() -> None:
        app = App(key, LARGE)
        async with listening(app) as (port, connections, _):
            wire = Wire(port, receive_bytes=4096)
            await rank_is(connections, Rank.STRANGER)
            wire.socket.sendall(POST[:-10])
            await until(lambda: any(one._head_bytes for one in protocols(connections)))
            await rank_is(connections, Rank.STRANGER)
            wire.socket.sendall(POST[-10:] + b"12")
            await app.began.wait()
            await rank_is(connections, receiving)
            wire.socket.sendall(b"34")
            await rank_is(connections, answering)
            app.may_answer.set()
            await until(lambda: any(one.flow.write_paused for one in protocols(connections)))
            await rank_is(connections, delivering)
            await wire.read_bytes(LARGE)
            await rank_is(connections, waiting)
            wire.socket.close()

    on_uvloop(test)


def test_next_request_of_a_key_keeps_its_rank_until_authenticated() -> None:
    seen: list[list[Rank | None]] = []

    async def test() -> None:
        app = App(KEYED)
        app.may_answer.set()

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            seen.append(list(registry[0]._ranks.values()))
            await app(scope, receive, send)

        registry: list[Connections] = []
        async with listening(noting) as (port, connections, _):
            registry.append(connections)
            wire = Wire(port)
            for _ in range(2):
                wire.socket.sendall(GET)
                assert await wire.read()
                await rank_is(connections, Rank.IDLE)
            wire.socket.close()

    on_uvloop(test)
    # None: it cannot be evicted.
    assert seen == [[Rank.PENDING], [None]]


@pytest.mark.parametrize(("key", "rank"), [(None, Rank.UNREAD), (ANONYMOUS, Rank.UNREAD), (KEYED, None)])
def test_answered_request_that_owes_its_body_has_a_rank(key: Key | None, rank: Rank | None) -> None:
    async def test() -> None:
        app = App(key)
        app.may_answer.set()
        async with listening(app) as (port, connections, _):
            wire = Wire(port)
            wire.socket.sendall(POST + b"1")
            assert await wire.read()
            await rank_is(connections, rank)
            wire.socket.sendall(b"234")
            await rank_is(connections, Rank.IDLE if key else Rank.STRANGER)
            wire.socket.close()

    on_uvloop(test)


def test_short_response_is_known_to_be_unread() -> None:
    """Bytes that uvloop takes before it pauses the writer count as unread, too."""
    size = 40_000

    async def test() -> None:
        app = App(KEYED, size)
        app.may_answer.set()
        async with listening(app, send_bytes=4096) as (port, connections, _):
            wire = Wire(port, receive_bytes=4096)
            wire.socket.sendall(GET * 2)
            await until(lambda: any(one.flow.write_paused for one in protocols(connections)))
            await rank_is(connections, None)
            # The next request has not begun either.
            (one,) = protocols(connections)
            assert one._ahead == GET
            await wire.read_bytes(2 * size)
            await rank_is(connections, Rank.IDLE)
            wire.socket.close()

    on_uvloop(test)


def test_stalled_response_to_a_stranger_makes_room_first() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for place in range(100):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": place < 99})

    async def test() -> None:
        async with listening(stream) as (port, connections, _):
            wire = Wire(port, receive_bytes=4096)
            wire.socket.sendall(GET)
            await rank_is(connections, Rank.UNREAD)
            wire.socket.close()

    on_uvloop(test)


def test_key_counts_for_its_own_request_only() -> None:
    async def test() -> None:
        app = App(KEYED)
        app.may_answer.set()
        async with listening(app) as (port, connections, _):
            wire = Wire(port)
            wire.socket.sendall(GET)
            assert await wire.read()
            await rank_is(connections, Rank.IDLE)
            app.key = None
            app.may_answer.clear()
            app.began.clear()
            wire.socket.sendall(GET)
            await app.began.wait()
            await rank_is(connections, Rank.PENDING)
            app.may_answer.set()
            await rank_is(connections, Rank.STRANGER)
            wire.socket.close()

    on_uvloop(test)


@pytest.mark.parametrize("stream", [True, False])
def test_request_of_a_client_that_has_gone_ends(stream: bool) -> None:
    body = {"model": "fake", "prompt": "x", "max_tokens": 3, "stream": stream}

    async def test() -> None:
        async with serving(FakeOptions(prefill_delay_s=1000)) as server, listening(server.app) as (port, _, _):
            wire = Wire(port)
            wire.socket.sendall(raw_completion(body))
            await until(lambda: server.admission.open_requests == 1)
            wire.socket.close()
            await until(lambda: server.admission.open_requests == 0)

    on_uvloop(test)

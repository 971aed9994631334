"""Connections without a key do not take the place of clients with a key."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.program import Program, eventually, running
from tests.raw import Connection, connection
from tests.wire import TLS, metric, raw_completion

KEY = "key-of-the-tenant-0123456789"
BEARER = f"Bearer {KEY}"
ROOM = 20
CROWD = 24
LIMITS = ("--engine", "fake", "--max-connections", str(ROOM), "--drain-timeout", "0")
ENDLESS = ("--engine-arg", "max_model_len=100000000", "--engine-arg", "token_delay_s=0.05")
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Receive buffer in bytes: small, so that responses do not fit into the buffers on the way.
RECEIVE_BYTES = 4096

Attack = Callable[[Connection], None]


def ahead_and_unread(path: bytes) -> Attack:
    def attack(one: Connection) -> None:
        one.socket.settimeout(0.2)
        # The server stops reading at some point.
        with contextlib.suppress(TimeoutError):
            one.send(GET % path * 20_000)

    return attack


def no_body(one: Connection) -> None:
    one.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")


def half_a_body(one: Connection) -> None:
    one.send(raw_completion({"model": "fake", "prompt": "x"}, Authorization="Bearer wrong")[:-5])


def half_a_chunked_body(one: Connection) -> None:
    one.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")


def half_a_head(one: Connection) -> None:
    one.send(b"POST /v1/completions HTTP/1.1\r\nHost: loc")


def nothing(one: Connection) -> None:
    pass


def probe(one: Connection) -> None:
    one.send(GET % b"/livez")


def wait_to_continue(one: Connection) -> None:
    one.send(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n"
    )


def mixed(one: Connection) -> None:
    (ahead_and_unread(b"/livez"), no_body, half_a_head, nothing)[id(one) // 16 % 4](one)


WITHOUT_KEY: dict[str, Attack] = {
    "unread probes": ahead_and_unread(b"/livez"),
    "unread 401s": ahead_and_unread(b"/v1/models"),
    "unread page": ahead_and_unread(b"/ui/styles.css"),
    "no body": no_body,
    "half a body": half_a_body,
    "half a chunked body": half_a_chunked_body,
    "half a head": half_a_head,
    "nothing": nothing,
    "a probe": probe,
    "a body on demand": wait_to_continue,
    "all of it": mixed,
}


@contextlib.contextmanager
def crowd(program: Program, attack: Attack, count: int = CROWD) -> Iterator[list[Connection]]:
    with ExitStack() as stack:
        ones = [stack.enter_context(connection(program, RECEIVE_BYTES)) for _ in range(count)]
        for one in ones:
            # Later connections may already evict it.
            with contextlib.suppress(ConnectionError):
                attack(one)
        yield ones


def ask(program: Program, authorization: str = BEARER) -> float:
    """Send a request on a new connection; return the seconds until its response."""
    began_s = time.monotonic()
    body = {"model": program.model, "prompt": "x", "max_tokens": 2}
    headers = {"authorization": authorization} if authorization else {}
    answer = httpx.post(f"{program.url}/v1/completions", json=body, headers=headers, verify=TLS)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began_s


def generation(program: Program, **headers: str) -> bytes:
    fields = {"model": program.model, "prompt": "x", "stream": True, "max_tokens": 50_000_000, "ignore_eos": True}
    return raw_completion(fields, **headers)


@pytest.fixture(scope="module")
def keyed() -> Iterator[Program]:
    with running(*LIMITS, "--api-key", KEY, "--metrics-open") as program:
        yield program


@pytest.fixture(scope="module")
def keyless() -> Iterator[Program]:
    with running(*LIMITS) as program:
        yield program


@pytest.mark.parametrize("attack", WITHOUT_KEY)
def test_crowd_without_a_key_hinders_nobody_with_one(keyed: Program, attack: str) -> None:
    with crowd(keyed, WITHOUT_KEY[attack]):
        assert max(ask(keyed) for _ in range(10)) < 2


@pytest.mark.parametrize("attack", WITHOUT_KEY)
def test_crowd_hinders_nobody_on_a_server_without_keys(keyless: Program, attack: str) -> None:
    with crowd(keyless, WITHOUT_KEY[attack]):
        assert max(ask(keyless, "") for _ in range(10)) < 2


def others_are_gone(program: Program) -> bool:
    """Return whether no connection is open beside the one that asks."""
    with httpx.Client(base_url=program.url, verify=TLS) as client:
        return metric(client, "tokka_connections") == 1


def test_idle_connection_of_a_key_outlasts_a_crowd(keyed: Program) -> None:
    for attack in WITHOUT_KEY.values():
        # The requests of a crowd that has just left, also of another test, are in flight until the server notices.
        eventually(lambda: others_are_gone(keyed), within_s=10)
        with connection(keyed) as mine:
            request = raw_completion({"model": "fake", "prompt": "x", "max_tokens": 1}, Authorization=BEARER)
            mine.send(request)
            first = mine.answer()
            with crowd(keyed, attack):
                mine.send(request)
                second = mine.answer()
                assert first is not None
                assert second is not None
                assert (first.status, second.status) == (200, 200)


def test_request_without_a_key_is_answered_before_its_body(keyed: Program) -> None:
    for attack in (no_body, half_a_body, half_a_chunked_body, wait_to_continue):
        with connection(keyed) as one:
            began_s = time.monotonic()
            attack(one)
            answer = one.answer()
            assert answer is not None
            assert answer.status == 401
            assert time.monotonic() - began_s < 1


def test_running_request_with_a_key_is_never_evicted() -> None:
    with running(*LIMITS, *ENDLESS, "--api-key", KEY) as program, ExitStack() as stack:
        streams = [stack.enter_context(connection(program)) for _ in range(ROOM)]
        for stream in streams:
            stream.send(generation(program, Authorization=BEARER))
            assert b"200 OK" in stream.socket.recv(4096)
        with crowd(program, no_body), crowd(program, nothing):
            for _ in range(3):
                refused = httpx.post(f"{program.url}/v1/completions", json={}, headers={"authorization": BEARER})
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "server_overloaded"
                assert httpx.get(f"{program.url}/livez").status_code == 200
        for stream in streams:
            assert b"data: " in stream.socket.recv(4096)


def test_unfinished_body_with_a_key_is_never_evicted() -> None:
    with running(*LIMITS, "--api-key", KEY) as program, ExitStack() as stack:
        fields = {"model": program.model, "prompt": "x", "max_tokens": 1}
        request = raw_completion(fields, Authorization=BEARER, Expect="100-continue")
        end = request.index(b"\r\n\r\n") + 4
        ones = [stack.enter_context(connection(program)) for _ in range(ROOM)]
        for one in ones:
            one.send(request[:end])
            go_on = one.answer(has_body=False)
            assert go_on is not None
            assert go_on.status == 100
            one.send(request[end:-5])
        with crowd(program, nothing):
            refused = httpx.post(f"{program.url}/v1/completions", json={}, headers={"authorization": BEARER})
            assert refused.status_code == 503
        for one in ones:
            one.send(request[-5:])
            answer = one.answer()
            assert answer is not None
            assert answer.status == 200


def test_unread_answer_for_a_key_is_never_evicted() -> None:
    with running(*LIMITS, "--engine-arg", "max_model_len=1000000", "--api-key", KEY) as program:
        # A response of megabytes, which fits into no buffer on the way.
        fields = {"model": program.model, "prompt": "x" * 200_000, "n": 16, "max_tokens": 1, "echo": True}
        with connection(program, RECEIVE_BYTES) as mine:
            mine.send(raw_completion(fields, Authorization=BEARER))
            mine.socket.recv(1, socket.MSG_PEEK)
            with crowd(program, ahead_and_unread(b"/livez")), crowd(program, nothing):
                assert ask(program) < 2
                answer = mine.answer()
    assert answer is not None
    assert [len(choice["text"]) for choice in answer.json["choices"]] == [200_001] * 16


def test_connections_beyond_the_bound_stay_beyond_it() -> None:
    with running(*LIMITS, *ENDLESS, "--api-key", KEY) as program, ExitStack() as stack:
        streams = [stack.enter_context(connection(program)) for _ in range(ROOM)]
        for stream in streams:
            stream.send(generation(program, Authorization=BEARER))
            assert b"200 OK" in stream.socket.recv(4096)
        more = [stack.enter_context(connection(program)) for _ in range(5)]
        for one in more:
            one.send(generation(program, Authorization=BEARER))
        answers = [one.answer() for one in more]
        assert [answer.status for answer in answers if answer] == [503] * 5


def test_address_at_its_bound_is_refused_and_others_are_served() -> None:
    bound = ("--engine", "fake", *ENDLESS, "--max-connections-per-address", "3", "--drain-timeout", "0")
    with running(*bound) as program, ExitStack() as stack:
        for _ in range(3):
            stream = stack.enter_context(connection(program))
            stream.send(generation(program))
            assert b"200 OK" in stream.socket.recv(4096)
        with connection(program) as here, connection(program, source="127.0.0.2") as there:
            for one in (here, there):
                one.send(GET % b"/v1/models")
            refused, served = here.answer(), there.answer()
        assert refused is not None
        assert served is not None
        assert (refused.status, refused.closes, served.status) == (503, True, 200)
        assert "Your address" in refused.json["error"]["message"]
        assert httpx.get(f"{program.url}/livez").status_code == 200


def test_idle_connections_of_an_address_make_room_for_its_own() -> None:
    bound = ("--engine", "fake", "--max-connections-per-address", "3")
    with running(*bound) as program, connection(program, source="127.0.0.2") as other:
        other.send(GET % b"/livez")
        assert other.answer() is not None
        with crowd(program, probe, 10) as ones:
            assert ask(program, "") < 2
            # Two of the crowd are left beside the connection of `ask`.
            for one in ones[:8]:
                one.rest()
        other.send(GET % b"/livez")
        assert other.answer() is not None


def test_unix_socket_has_no_bound_of_an_address(tmp_path: object) -> None:
    path = f"{tmp_path}/tokka.sock"
    with running("--engine", "fake", "--uds", path, "--max-connections-per-address", "1"), ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://tokka"))
            for _ in range(5)
        ]
        for _ in range(2):
            assert [client.get("/v1/models").status_code for client in clients] == [200] * 5
        assert metric(clients[0], "tokka_connections_cut_total") == 0


def test_address_has_no_bound_by_default() -> None:
    with running("--engine", "fake") as program, crowd(program, probe, 200) as ones:
        assert all(one.answer() for one in ones)
        with program.client() as client:
            assert metric(client, "tokka_connections") == 201

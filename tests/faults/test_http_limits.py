"""Clients that send slowly, never read, or are too many: the server cuts them in a set time and serves the others."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.program import Program, eventually, running
from tests.wire import metric, raw_completion
from tokka.settings import load_settings

# A response that does not fit into any socket's buffers.
HUGE = ("--engine-arg", "max_model_len=100000000", "--engine-arg", f"answer={'long answer ' * 100}")

# Maximum seconds until the server of `program` cuts a client. It is far above that server's limits, because a busy
# machine is late, and below every default, which would apply if a limit did not.
SOON_S = 8.0


@contextlib.contextmanager
def connected(
    program: Program, count: int = 1, receive_bytes: int | None = None, first: bytes = b""
) -> Iterator[list[socket.socket]]:
    """Open raw connections. `first`: the bytes that each sends at once, before the next one is opened."""
    at = urlsplit(program.url)
    sockets = []
    try:
        for _ in range(count):
            raw = socket.socket()
            sockets.append(raw)
            if receive_bytes:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            raw.settimeout(30)
            raw.connect((at.hostname, at.port))
            raw.sendall(first)
        yield sockets
    finally:
        for raw in sockets:
            raw.close()


def read_all(raw: socket.socket) -> bytes:
    """Return all bytes until the server closes; fail if it does not close."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := raw.recv(65536):
            data += piece
    return data


def closed_after_s(raw: socket.socket) -> tuple[float, bytes]:
    """Read until the server closes; return the seconds it took, and the bytes."""
    began_s = time.monotonic()
    data = read_all(raw)
    return time.monotonic() - began_s, data


def error_of(data: bytes) -> tuple[int, str]:
    """Return the status and the error code of a raw response."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def ask(client: httpx.Client, program: Program) -> httpx.Response:
    return client.post("/v1/completions", json={"model": program.model, "prompt": "x", "max_tokens": 4})


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process so far, which other programs on the machine do not change."""
    times = process.cpu_times()
    return times.user + times.system


def generation(program: Program, max_tokens: int = 50_000_000) -> bytes:
    """Return a request for a stream of `max_tokens` tokens; the default does not end during a test."""
    fields = {"model": program.model, "prompt": "x", "stream": True, "max_tokens": max_tokens, "ignore_eos": True}
    return raw_completion(fields)


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    limits = ("--header-timeout", "1", "--body-timeout", "1", "--write-timeout", "2", "--idle-timeout", "2")
    with running("--engine", "fake", *HUGE, *limits) as program:
        yield program


def test_a_connection_that_sends_nothing_is_closed(program: Program) -> None:
    with connected(program) as (raw,):
        took_s, data = closed_after_s(raw)
    assert data == b""
    assert 0.9 < took_s < SOON_S


def test_half_a_head_is_answered_408_and_closed(program: Program) -> None:
    with connected(program) as (raw,):
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: loc")
        took_s, data = closed_after_s(raw)
    assert error_of(data) == (408, "request_timeout")
    assert 0.9 < took_s < SOON_S


def test_a_head_that_drips_is_no_faster_than_one_that_stops(program: Program) -> None:
    with connected(program) as (raw,):
        raw.settimeout(0.1)
        began_s = time.monotonic()
        data = b""
        raw.send(b"GET /")
        while not data:
            raw.send(b"x")
            with contextlib.suppress(TimeoutError):
                data = raw.recv(65536)
        assert error_of(data) == (408, "request_timeout")
        assert 0.9 < time.monotonic() - began_s < SOON_S


def test_the_next_head_on_a_connection_has_the_same_time(program: Program) -> None:
    with connected(program) as (raw,):
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in raw.recv(65536)
        raw.sendall(b"GET /livez HTT")
        took_s, data = closed_after_s(raw)
    assert error_of(data) == (408, "request_timeout")
    assert 0.9 < took_s < SOON_S


def test_an_idle_connection_is_closed(program: Program) -> None:
    with connected(program) as (raw,):
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        took_s, data = closed_after_s(raw)
    assert data.endswith(b'{"status":"alive"}')
    assert 1.5 < took_s < SOON_S


def test_default_idle_timeout_outlasts_common_proxies() -> None:
    proxies_s = {"nginx": 60, "AWS ALB": 60, "Go": 90, "Traefik": 90, "Caddy": 120}
    assert load_settings({}).idle_timeout > max(proxies_s.values())


def test_half_a_body_is_answered_408_with_one_outcome(program: Program) -> None:
    with program.client() as client:
        before = metric(client, "tokka_requests_total", outcome="invalid")
        with connected(program) as (raw,):
            raw.sendall(generation(program)[:-10])
            took_s, data = closed_after_s(raw)
        assert error_of(data) == (408, "request_timeout")
        assert 0.9 < took_s < SOON_S
        assert metric(client, "tokka_requests_total", outcome="invalid") == before + 1


def test_a_slow_but_steady_body_is_waited_for(program: Program) -> None:
    """The time limit of a body grows by a second for every 64 KiB that arrive."""
    words = "word " * 80_000
    whole = raw_completion({"model": program.model, "prompt": words, "max_tokens": 1})
    with connected(program) as (raw,):
        began_s = time.monotonic()
        piece = len(whole) // 16
        for at in range(0, len(whole), piece):
            raw.sendall(whole[at : at + piece])
            # The transfer rate of a slow network.
            time.sleep(0.15)
        assert time.monotonic() - began_s > 2
        assert b"200 OK" in raw.recv(65536)


def test_rest_of_an_answered_body_is_not_waited_for() -> None:
    # Short timeouts would close the connection as well.
    with (
        running("--engine", "fake", "--idle-timeout", "60", "--body-timeout", "60") as program,
        connected(program) as (raw,),
    ):
        raw.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        assert b"404 Not Found" in raw.recv(65536)
        took_s, _ = closed_after_s(raw)
    assert 4 < took_s < 25


def test_connection_is_kept_once_the_rest_has_come() -> None:
    with running("--engine", "fake") as program, connected(program) as (raw,):
        raw.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        assert b"404 Not Found" in raw.recv(65536)
        raw.sendall(b"x" * 999)
        raw.settimeout(7)
        with pytest.raises(TimeoutError):
            raw.recv(1)
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in raw.recv(65536)


@pytest.mark.timeout(120)
def test_a_client_that_never_reads_is_cut_and_its_generation_ends(program: Program) -> None:
    server = psutil.Process(program.process.pid)
    with program.client() as client, connected(program, 4, receive_bytes=4096) as sockets:
        assert ask(client, program).status_code == 200
        before = server.memory_info().rss
        cut = metric(client, "tokka_connections_cut_total", reason="write_timeout")
        for raw in sockets:
            raw.sendall(generation(program))
        eventually(lambda: metric(client, "tokka_requests_running") == 4, within_s=10)
        slowest_s = 0.0

        def ended() -> bool:
            nonlocal slowest_s
            began_s = time.monotonic()
            assert ask(client, program).status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            return metric(client, "tokka_requests_running") == 0

        eventually(ended, within_s=60)
        assert metric(client, "tokka_connections_cut_total", reason="write_timeout") == cut + 4
        assert slowest_s < SOON_S
        assert server.memory_info().rss - before < 64 << 20


@pytest.mark.timeout(60)
def test_the_kernels_buffers_do_not_hide_a_client_that_never_reads(program: Program) -> None:
    # The stream is smaller than a megabyte. A socket could buffer all of it, so that it would seem delivered.
    with program.client() as client, connected(program, receive_bytes=4096) as (raw,):
        before = metric(client, "tokka_requests_total", outcome="aborted")
        raw.sendall(generation(program, max_tokens=4_000))
        eventually(lambda: metric(client, "tokka_requests_total", outcome="aborted") == before + 1, within_s=20)


def test_unread_answer_does_not_keep_its_connection_open(program: Program) -> None:
    with program.client() as client:
        before = metric(client, "tokka_connections")
        with connected(program, receive_bytes=4096) as (raw,):
            raw.sendall(generation(program, max_tokens=30_000))
            eventually(lambda: metric(client, "tokka_connections") > before, within_s=5)
            eventually(lambda: metric(client, "tokka_connections") <= before, within_s=30)


def test_a_thousand_idle_and_half_sent_connections_hurt_nobody_and_go(program: Program) -> None:
    server = psutil.Process(program.process.pid)
    with program.client() as client:
        ask(client, program)
        fds, rss = server.num_fds(), server.memory_info().rss
        head, body = b"POST /v1/completions HTTP/1.1\r\nHost:", generation(program)[:-10]
        with connected(program, 600), connected(program, 200, first=head), connected(program, 200, first=body):
            before_s = cpu_s(server)
            for _ in range(50):
                assert ask(client, program).status_code == 200
            assert (cpu_s(server) - before_s) / 50 < 0.05
            eventually(lambda: metric(client, "tokka_connections") <= 3, within_s=15)
        eventually(lambda: server.num_fds() <= fds + 2, within_s=5)
        assert server.memory_info().rss - rss < 64 << 20


def test_longest_idle_connection_makes_room() -> None:
    options = ("--engine", "fake", "--max-connections", "20")
    with running(*options) as program, connected(program, 20) as idle, program.client() as client:
        # One after the other: the server accepts simultaneous connections in any order.
        assert ask(client, program).status_code == 200
        with program.client() as other:
            assert ask(other, program).status_code == 200
            evicted, kept = idle[:2], idle[2:]
            assert [read_all(raw) for raw in evicted] == [b"", b""]
            assert metric(client, "tokka_connections_cut_total", reason="evicted") == 2
            assert metric(client, "tokka_connections") == 20
            for raw in kept:
                raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in raw.recv(65536)


def test_flood_of_idle_connections_leaves_room_for_requests() -> None:
    options = ("--engine", "fake", "--max-connections", "20")
    with running(*options) as program, connected(program, 60), program.client() as client:
        for _ in range(20):
            assert ask(client, program).status_code == 200
        assert metric(client, "tokka_connections") <= 20
        assert metric(client, "tokka_connections_cut_total", reason="evicted") >= 40


def test_new_connection_gets_503_when_all_connections_are_busy() -> None:
    options = ("--engine", "fake", *HUGE, "--engine-arg", "token_delay_s=0.1", "--drain-timeout", "0")
    with running(*options, "--max-connections", "5") as program, connected(program, 5) as sockets:
        for raw in sockets:
            raw.sendall(generation(program))
            assert b"200 OK" in raw.recv(15)
        with program.client() as client:
            refused = ask(client, program)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_overloaded"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        for probe in ("/livez", "/readyz"):
            with program.client() as client:
                assert client.get(probe).status_code == 200


@pytest.mark.timeout(120)
def test_a_flood_beyond_the_files_it_may_open_is_survived() -> None:
    with running("--engine", "fake", open_files=300) as program, program.client() as client:
        assert ask(client, program).status_code == 200
        with connected(program, 600):
            with program.client() as other:
                assert other.get("/livez").status_code == 200
            with program.client() as other:
                assert ask(other, program).status_code == 200
        eventually(lambda: metric(client, "tokka_connections") <= 2, within_s=15)
        assert psutil.Process(program.process.pid).num_fds() < 100


@pytest.mark.parametrize("request_", [b"", b"GET /livez HTTP/1.1\r\nHo", b"body", b"never reads"])
def test_no_client_holds_up_the_end(request_: bytes) -> None:
    # Far above the time that a busy machine takes to end a program.
    patient = ("--header-timeout", "60", "--body-timeout", "60", "--write-timeout", "60")
    options = ("--engine", "fake", *HUGE, *patient, "--drain-timeout", "0.5")
    with running(*options) as program, program.client() as client, connected(program, receive_bytes=4096) as (raw,):
        match request_:
            case b"body":
                raw.sendall(generation(program)[:-10])
            case b"never reads":
                raw.sendall(generation(program))
                eventually(lambda: metric(client, "tokka_requests_running") == 1, within_s=5)
            case _:
                raw.sendall(request_)
        began_s = time.monotonic()
        assert program.stop() == 0
        assert time.monotonic() - began_s < 30

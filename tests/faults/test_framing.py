"""HTTP framing: each request gets one response, and the server never runs a part of a request as another request."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.program import Program, eventually, running
from tests.raw import Answer, connection, exchange
from tests.wire import metric, raw_completion

ADMIN = "admin-key-0123456789"
HIDDEN = (
    b"GET /admin/keys HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n" % ADMIN.encode(),
    b"POST /admin/drain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\n\r\n"
    % ADMIN.encode(),
)
OFFERS = ("h2c", "websocket", "x", "h2c, websocket", "TLS/1.0")
# Seconds between packets: enough for the server to read the previous packet, even on a busy machine.
APART_S = 0.1


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """Start a server that the hidden requests could drain; check at the end that none did."""
    with running("--engine", "fake", "--admin-key", ADMIN) as program:
        yield program
        with program.client() as client:
            assert client.get("/readyz").status_code == 200


def head(*lines: str, version: str = "1.1") -> bytes:
    fixed = [f"POST /v1/chat/completions HTTP/{version}", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*fixed, f"Authorization: Bearer {ADMIN}", *lines, "", ""]).encode()


def offer(upgrade: str, *lines: str) -> bytes:
    return head("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: AAMAAABk", *lines)


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def chat(program: Program) -> bytes:
    question = {"model": program.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    return json.dumps(question).encode()


def in_packets(program: Program, *packets: bytes) -> list[Answer]:
    """Send the packets with pauses between them; return the responses."""
    with connection(program) as one:
        for packet in packets:
            one.send(packet)
            # A client cannot see that the server has read a part of a request.
            time.sleep(APART_S)
        one.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return [answer for answer in iter(one.answer, None) if answer][:-1]


@pytest.mark.parametrize("upgrade", OFFERS)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_offered_upgrade_is_served_as_http_1_1(program: Program, upgrade: str, apart: bool, is_chunked: bool) -> None:
    body = chat(program)
    line = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(body)}"
    packets = (offer(upgrade, line), chunked(body) if is_chunked else body)
    (answer,) = in_packets(program, *packets) if apart else exchange(program, b"".join(packets))
    assert answer.status == 200
    assert answer.json["choices"][0]["finish_reason"]


@pytest.mark.parametrize("upgrade", OFFERS)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("apart", [False, True])
def test_body_behind_an_offer_is_no_request(program: Program, upgrade: str, hidden: bytes, apart: bool) -> None:
    packets = (offer(upgrade, f"Content-Length: {len(hidden)}"), hidden)
    (answer,) = in_packets(program, *packets) if apart else exchange(program, b"".join(packets))
    assert answer.status == 400
    assert "JSON" in answer.json["error"]["message"]


@pytest.mark.parametrize("apart", [False, True])
def test_chunked_body_behind_an_offer_is_no_request(program: Program, apart: bool) -> None:
    packets = (offer("h2c", "Transfer-Encoding: chunked"), chunked(HIDDEN[1]))
    (answer,) = in_packets(program, *packets) if apart else exchange(program, b"".join(packets))
    assert answer.status == 400


def test_every_cut_of_an_offer_gives_the_same_answer(program: Program) -> None:
    whole = offer("h2c", f"Content-Length: {len(HIDDEN[1])}") + HIDDEN[1]
    end = whole.index(b"\r\n\r\n") + 4
    for cut in (*range(end - 6, end + 7), 1, 40, len(whole) - 1):
        with connection(program) as one:
            one.send(whole[:cut])
            one.send(whole[cut:] + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert [answer.status for answer in iter(one.answer, None) if answer] == [400, 200]


def test_request_behind_an_offer_is_served_in_its_turn(program: Program) -> None:
    get = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert [answer.status for answer in exchange(program, get * 50)] == [200] * 50


def test_offered_upgrade_is_not_logged(program: Program) -> None:
    (answer,) = exchange(program, offer("websocket", "Content-Length: 2", "X-Request-Id: offers") + b"{}")
    assert answer.status == 400
    eventually(lambda: any(line.get("request_id") == "offers" for line in program.log), within_s=5)
    assert "upgrade" not in str(program.log).lower()
    assert program.stderr() == ""


def test_connect_is_refused_and_closed(program: Program) -> None:
    with connection(program) as one:
        one.send(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + HIDDEN[1])
        answer = one.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (400, True)
        assert "CONNECT" in answer.json["error"]["message"]
        assert one.rest() == b""


# -- several requests on a connection


def get(path: str, *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", *lines, "", ""]).encode()


def test_requests_sent_ahead_are_answered_in_their_order(program: Program) -> None:
    body = chat(program)
    post = head(f"Content-Length: {len(body)}") + body
    posts = head("Transfer-Encoding: chunked") + chunked(body)
    livez, nothing = get("/livez", "Host: a"), get("/nothing", "Host: localhost", f"Authorization: Bearer {ADMIN}")
    answers = exchange(program, post + livez + posts + nothing + post + livez)
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200, 200]


def test_every_cut_of_requests_sent_ahead_gives_the_same(program: Program) -> None:
    body = b"\r\n\r\n0\r\n\r\n"
    requests = (
        get("/livez", "Host: a")
        + head("Transfer-Encoding: chunked")
        + b"3;x=y\r\n\r\n\r\r\n9\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % body
        + get("/nothing", "Host: localhost", f"Authorization: Bearer {ADMIN}")
        + head(f"Content-Length: {len(body)}")
        + body
    )
    for cut in range(1, len(requests), 7):
        with connection(program) as one:
            one.send(requests[:cut])
            one.send(requests[cut:] + get("/livez", "Host: a", "Connection: close"))
            statuses = [answer.status for answer in iter(one.answer, None) if answer]
        assert statuses == [200, 400, 404, 400, 200], f"cut at {cut}"


def test_ten_thousand_requests_sent_ahead_are_all_answered(program: Program) -> None:
    count = 10_000
    with connection(program) as one:
        sender = threading.Thread(target=one.send, args=(get("/livez", "Host: a") * count,))
        sender.start()
        answers = [one.answer() for _ in range(count)]
        sender.join()
    assert {answer.status for answer in answers if answer} == {200}


def test_only_one_request_of_a_connection_runs_at_a_time() -> None:
    slow = ("--engine", "fake", "--engine-arg", "token_delay_s=0.1")
    with running(*slow) as program, connection(program) as one, program.client() as client:
        one.send(raw_completion({"model": program.model, "prompt": "x", "max_tokens": 8, "ignore_eos": True}) * 3)
        most = 0.0
        for _ in range(3):
            eventually(lambda: metric(client, "tokka_requests_running") == 1, within_s=5)
            most = max(most, metric(client, "tokka_requests_running") + metric(client, "tokka_requests_waiting"))
            answer = one.answer()
            assert answer is not None
            assert answer.status == 200
        assert most == 1


def test_request_sent_ahead_is_not_run_when_its_client_leaves() -> None:
    slow = ("--engine", "fake", "--engine-arg", "token_delay_s=0.2", "--engine-arg", "max_model_len=100000")
    with running(*slow) as program, program.client() as client:
        body = {"model": program.model, "prompt": "x", "max_tokens": 5000, "ignore_eos": True}
        with connection(program) as one:
            one.send(raw_completion(body) + raw_completion(body))
            eventually(lambda: metric(client, "tokka_requests_running") == 1, within_s=5)
        eventually(lambda: metric(client, "tokka_requests_running") == 0, within_s=5)
        assert metric(client, "tokka_requests_total", outcome="aborted") == 1
        assert metric(client, "tokka_requests_total") == 1


def test_client_that_sends_far_ahead_has_to_wait() -> None:
    slow = ("--engine", "fake", "--engine-arg", "token_delay_s=0.2", "--drain-timeout", "0")
    # The application regularly checks for a disconnect. The check must not read further requests.
    with running(*slow, "--keep-alive-interval", "0.05") as program, connection(program) as one:
        one.send(raw_completion({"model": program.model, "prompt": "x", "max_tokens": 100, "ignore_eos": True}))
        one.socket.settimeout(1)
        began_s, sent = time.monotonic(), 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += one.socket.send(get("/livez", "Host: a") * 10_000)
                assert time.monotonic() - began_s < 10, "it is read on and on"
        # The kernel's buffers of both sides take less than this.
        assert sent < 24 << 20


def test_nothing_is_run_behind_a_request_that_closes(program: Program) -> None:
    with connection(program) as one:
        one.send(get("/livez", "Host: a", "Connection: close") + HIDDEN[1] + HIDDEN[1])
        answer = one.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (200, True)
        assert one.rest() == b""


# -- requests with invalid framing


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("no Host", get("/livez")),
        ("two Hosts", get("/livez", "Host: a", "Host: a")),
        ("two Hosts, 1.0", get("/livez", "Host: a", "Host: b", version="1.0")),
        ("a Host that is a URL", get("/livez", "Host: http://localhost/")),
        ("a Host with a path", get("/livez", "Host: localhost/admin")),
        ("a Host with a user", get("/livez", "Host: evil@localhost")),
        ("two Hosts in one", get("/livez", "Host: localhost localhost")),
        ("a port that is none", get("/livez", "Host: localhost:http")),
        ("HTTP/2.0", get("/livez", "Host: a", version="2.0")),
        ("HTTP/0.9", get("/livez", "Host: a", version="0.9")),
        ("no version", b"GET /livez\r\nGET /livez\r\n\r\n"),
        ("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500),
        ("both lengths", head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n"),
        ("two lengths", head("Content-Length: 5", "Content-Length: 6") + b"abcdef"),
        ("chunks in 1.0", head("Transfer-Encoding: chunked", version="1.0") + b"0\r\n\r\n"),
        ("compressed chunks", head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
        ("an unknown coding", head("Transfer-Encoding: xchunked") + b"0\r\n\r\n"),
        ("identity", head("Transfer-Encoding: identity") + b"abc"),
        ("a bare line feed", b"GET /livez HTTP/1.1\nHost: a\n\n"),
        ("a folded header", get("/livez", "Host: a", "X: b", " folded")),
    ],
)
def test_ambiguous_request_is_refused_and_closed(program: Program, name: str, request_: bytes) -> None:
    with connection(program) as one:
        one.send(request_ + HIDDEN[1])
        answer = one.answer()
        assert answer is not None, name
        assert (answer.status, answer.closes) == (400, True), name
        assert answer.json["error"]["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"]
        assert one.rest() == b""


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]:80", "[fe80::1%25eth0]", "a_b.example", "x:", ""]
)
def test_valid_host_is_served(program: Program, host: str) -> None:
    (answer,) = exchange(program, get("/livez", f"Host: {host}"))
    assert answer.status == 200


def test_missing_host_is_named(program: Program) -> None:
    with connection(program) as one:
        one.send(get("/livez"))
        answer = one.answer()
    assert answer is not None
    assert "`Host`" in answer.json["error"]["message"]


@pytest.mark.parametrize("body", [b"zz\r\n", b"5\r\nabcdefg\r\n", b"5\r\nabcdeX\r\n0\r\n\r\n"])
def test_broken_chunk_gets_one_answer(program: Program, body: bytes) -> None:
    name = f"broken-{body!r}".replace(" ", "")
    with connection(program) as one:
        one.send(head("Transfer-Encoding: chunked", f"X-Request-Id: {name}"))
        time.sleep(APART_S)
        one.send(body + HIDDEN[1])
        answer = one.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (400, True)
        assert one.rest() == b""
        # The request itself has ended too: the server does not wait for its body.
        eventually(lambda: any(line.get("request_id") == name for line in program.log), within_s=3)


def test_broken_chunk_behind_an_answer_gets_no_other(program: Program) -> None:
    """The request lacks a key, so the server answers before the body arrives."""
    with connection(program) as one:
        one.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = one.answer()
        assert answer is not None
        assert answer.status == 401
        one.send(b"zz\r\n" + HIDDEN[1])
        assert one.rest() == b""


def test_answer_reaches_a_client_that_sends_megabytes_of_junk(program: Program) -> None:
    with connection(program) as one:
        one.socket.settimeout(4)
        one.send(b"NOT HTTP\r\n\r\n" + b"x" * (8 << 20))
        answer = one.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (400, True)
        assert one.rest() == b""


def test_broken_request_sent_ahead_does_not_spoil_an_answer(program: Program) -> None:
    body = chat(program)
    with connection(program) as one:
        one.send(head(f"Content-Length: {len(body)}") + body + b"NOT HTTP\r\n\r\n")
        first, second = one.answer(), one.answer()
        assert first is not None
        assert second is not None
        assert (first.status, second.status, second.closes) == (200, 400, True)
        assert one.rest() == b""


# -- HTTP/1.0


def stream_of(program: Program, *lines: str, version: str) -> bytes:
    body = json.dumps({"model": program.model, "prompt": "x", "stream": True, "max_tokens": 4}).encode()
    post = head(f"Content-Length: {len(body)}", *lines, version=version)
    return post.replace(b"/v1/chat/completions", b"/v1/completions") + body


@pytest.mark.parametrize("lines", [(), ("Connection: keep-alive",)])
def test_stream_for_http_1_0_ends_with_the_connection(program: Program, lines: tuple[str, ...]) -> None:
    with connection(program) as one:
        one.send(stream_of(program, *lines, version="1.0"))
        answer = one.answer()
    assert answer is not None
    assert (answer.status, answer.closes) == (200, True)
    assert not {"transfer-encoding", "content-length"} & answer.headers.keys()
    events = answer.body.decode().split("\n\n")
    assert (events[0][:7], events[-2:]) == ("data: {", ["data: [DONE]", ""])
    assert all(event.startswith("data: ") for event in events[:-1])


def test_stream_for_http_1_1_is_chunked(program: Program) -> None:
    (answer,) = exchange(program, stream_of(program, version="1.1"))
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("lines", [(), ("Host: localhost",)])
def test_http_1_0_without_a_host_is_served(program: Program, lines: tuple[str, ...]) -> None:
    with connection(program) as one:
        one.send(get("/livez", *lines, version="1.0"))
        answer = one.answer()
        assert answer is not None
        assert (answer.status, answer.closes, answer.body) == (200, True, b'{"status":"alive"}')
        assert one.rest() == b""


def test_http_1_0_client_gets_no_100_continue(program: Program) -> None:
    body = chat(program)
    with connection(program) as one:
        one.send(head(f"Content-Length: {len(body)}", "Expect: 100-continue", version="1.0"))
        time.sleep(APART_S)
        one.send(body)
        answer = one.answer()
    assert answer is not None
    assert answer.status == 200


# -- the end of a connection


def test_refusal_instead_of_100_continue_closes(program: Program) -> None:
    """The client may or may not send its body, so the next bytes could be a body or a request."""
    post = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with connection(program) as one:
        one.send(post % len(HIDDEN[1]))
        answer = one.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (401, True)
        one.send(HIDDEN[1])
        assert one.rest() == b""


def test_answer_reaches_a_client_that_still_sends_when_closed(program: Program) -> None:
    """Closing immediately would reset the connection, and the client would lose the response."""
    size = 4 << 20
    with connection(program) as one:
        post = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
        one.send(post + b"x" * size)
        answer = one.answer()
        assert answer is not None
        assert (answer.status, answer.closes) == (401, True)
        assert one.rest() == b""


def test_every_answer_closes_its_connection_while_draining() -> None:
    slow = ("--engine", "fake", "--engine-arg", "token_delay_s=0.1", "--api-key", "key-0123456789abcdef")
    with running(*slow) as program, ExitStack() as stack:
        key = "Bearer key-0123456789abcdef"
        longest, stream, plain, *pooled = [stack.enter_context(connection(program)) for _ in range(9)]
        fields = {"model": program.model, "prompt": "x", "max_tokens": 30, "ignore_eos": True}
        for one in pooled:
            one.send(get("/livez", "Host: a"))
            answer = one.answer()
            assert answer is not None
            assert not answer.closes
        longest.send(raw_completion({**fields, "stream": True, "max_tokens": 60}, Authorization=key))
        stream.send(raw_completion({**fields, "stream": True}, Authorization=key))
        assert b"200 OK" in stream.socket.recv(4096, socket.MSG_PEEK)
        plain.send(raw_completion(fields, Authorization=key))
        program.process.send_signal(signal.SIGTERM)
        program.wait_for("draining")
        later = [
            (200, get("/livez", "Host: a")),
            (503, get("/readyz", "Host: a")),
            (404, get("/nothing", "Host: a", f"Authorization: {key}")),
            (401, raw_completion(fields)),
            (503, raw_completion(fields, Authorization=key)),
            (503, raw_completion({**fields, "stream": True}, Authorization=key)),
        ]
        for one, (status, request) in zip(pooled, later, strict=True):
            one.send(request)
            answer = one.answer()
            assert answer is not None
            assert (answer.status, answer.closes) == (status, True)
            assert one.rest() == b""
        # In-flight requests complete, and their connections close.
        streamed, folded = stream.answer(), plain.answer()
        assert streamed is not None
        assert folded is not None
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        assert (folded.status, folded.closes) == (200, True)
        for one in (stream, plain):
            # The connections close long before the longest stream ends, which closes all of them.
            one.socket.settimeout(1)
            assert one.rest() == b""
        assert program.process.wait(10) == 0

"""HTTP over the socket: limits of headers, malformed HTTP, request ids, silent streams, and log lines."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.program import Program, eventually, running
from tests.sockets import opened


@pytest.fixture
def client(fake: Program) -> Iterator[httpx.Client]:
    with fake.client() as client:
        yield client


def raw(program: Program, data: bytes) -> tuple[int, dict[str, str], dict[str, dict[str, str]]]:
    """Send bytes. Return the status, headers and JSON body of the response."""
    address = urlsplit(program.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, json.loads(body)


def test_header_above_the_limit_gets_431(fake: Program) -> None:
    status, headers, body = raw(fake, b"GET /livez HTTP/1.1\r\nhost: x\r\nbig: " + b"a" * 70_000 + b"\r\n\r\n")
    assert status == 431
    assert body["error"]["code"] == "headers_too_large"
    assert headers["x-request-id"]


def test_head_without_end_is_cut_at_the_limit(fake: Program) -> None:
    assert raw(fake, b"GET /livez HTTP/1.1\r\nhost: x\r\nbig: " + b"a" * 400_000)[0] == 431


def test_many_small_headers_count_together(fake: Program) -> None:
    lines = b"".join(b"h%d: %s\r\n" % (at, b"v" * 50) for at in range(1500))
    assert raw(fake, b"GET /livez HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n")[0] == 431


def test_head_below_the_limit_is_served(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"big": "a" * 60_000}).status_code == 200


def test_large_body_after_a_small_head_is_no_head(client: httpx.Client) -> None:
    body = {"model": "fake", "prompt": "x" * 3000, "max_tokens": 1, "user": "u" * 900}
    assert client.post("/v1/completions", json=body).status_code == 200
    bigger = client.post("/tokenize", json={"prompt": "y" * 300_000})
    assert bigger.json()["count"] == 300_000


def test_broken_http_gets_400_in_openais_form(fake: Program) -> None:
    status, headers, body = raw(fake, b"NOT HTTP AT ALL\r\n\r\n")
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    assert headers["x-request-id"]


@pytest.mark.parametrize("given", ["my-request-1", "a" * 128])
def test_short_printable_request_id_is_kept(client: httpx.Client, given: str) -> None:
    assert client.get("/v1/models", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "two words", "tab\tbed"])
def test_other_request_ids_are_replaced(client: httpx.Client, given: str) -> None:
    assert client.get("/v1/models", headers={"x-request-id": given}).headers["x-request-id"].startswith("req_")


def test_every_answer_says_how_long_it_took(client: httpx.Client) -> None:
    for path in ("/livez", "/v1/models", "/nothing"):
        assert int(client.get(path).headers["openai-processing-ms"]) >= 0


def test_silent_stream_is_kept_alive() -> None:
    options = ["--engine", "fake", "--engine-arg", "prefill_delay_s=1.5", "--keep-alive-interval", "0.2"]
    with running(*options) as program, program.client() as client:
        body = {"model": "fake", "prompt": "x", "max_tokens": 2, "stream": True}
        text = client.post("/v1/completions", json=body).text
        assert text.count(": keep-alive\n") >= 3
        assert text.endswith("data: [DONE]\n\n")
        # An empty line comes only after data, because some readers end an event at each empty line.
        lines = text.split("\n")
        assert all(before.startswith("data: ") for before, line in pairwise(lines[:-1]) if not line)


def test_prompts_are_not_logged_unless_asked_for() -> None:
    canary = "canary-in-the-prompt"
    body = {"model": "fake", "messages": [{"role": "user", "content": canary}], "max_tokens": 2}
    for options, logged in (([], False), (["--log-prompts"], True)):
        with running("--engine", "fake", "--log-level", "debug", *options) as program, program.client() as client:
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            broken = {**body, "messages": [{"role": canary, "content": canary}]}
            assert client.post("/v1/chat/completions", json=broken).status_code == 400
            with opened(program, None) as socket:
                assert socket.turn(canary)["status"] == "completed"
            assert program.stop() == 0
            assert (canary in str(program.log)) is logged
            assert canary not in program.stderr()


def test_logged_prompts_show_background_and_no_image_data() -> None:
    options = ("--engine", "fake", "--engine-arg", "images=true", "--log-prompts")
    url = "data:image/png;base64," + "A" * 400
    parts = [{"type": "input_text", "text": "canary"}, {"type": "input_image", "image_url": url}]
    body = {"model": "fake", "input": [{"role": "user", "content": parts}], "background": True}
    with running(*options) as program, program.client() as client:
        assert client.post("/v1/responses", json=body).status_code == 200
        line = program.wait_for("background_finished", timeout_s=10)
        assert program.stop() == 0
    (prompt,) = line["prompt"]
    assert prompt["messages"][0]["content"] == "canary"
    assert prompt["images"] == ["input[0].content[1]"]
    assert "A" * 40 not in str(program.log)


def test_access_line_has_outcome_tokens_and_times(fake: Program, client: httpx.Client) -> None:
    body = {"model": "fake", "prompt": "four", "max_tokens": 5}
    client.post("/v1/completions", json=body, headers={"x-request-id": "access-line"})

    def line() -> dict[str, object] | None:
        return next((entry for entry in fake.log if entry.get("request_id") == "access-line"), None)

    eventually(lambda: line() is not None, within_s=5)
    found = line() or {}
    assert found["outcome"] == "length"
    assert (found["prompt_tokens"], found["completion_tokens"]) == (4, 5)
    assert (found["tenant"], found["model"], found["status"]) == ("anonymous", "fake", 200)
    assert isinstance(found["ttft_s"], float)


def test_unix_socket_serves_and_a_stale_one_is_replaced(tmp_path: object) -> None:
    path = f"{tmp_path}/tokka.sock"
    for _ in range(2):
        with running("--engine", "fake", "--uds", path) as program:
            with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://tokka") as client:
                assert client.get("/readyz").status_code == 200
            program.process.kill()
            program.process.wait()


def test_unix_socket_is_closed_to_others_on_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "tokka.sock"
    before = os.umask(0)
    try:
        with running("--engine", "fake", "--uds", str(path)):
            # Connecting needs write permission.
            assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    finally:
        os.umask(before)


def test_head_is_answered_like_get_without_a_body(client: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/v1/models", "/nothing"):
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code
        assert head.content == b""


def test_trailer_cannot_change_a_request() -> None:
    body = json.dumps({"model": "fake", "prompt": "x", "max_tokens": 1}).encode()
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    trailers = b"authorization: Bearer secret-key-1\r\nx-request-id: from-a-trailer\r\n\r\n"
    with running("--engine", "fake", "--api-key", "secret-key-1") as program:
        request = head + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + chunk + trailers
        status, headers, _ = raw(program, request)
        assert status == 401
        assert headers["x-request-id"] != "from-a-trailer"


def test_endless_trailer_is_cut(fake: Program) -> None:
    address = urlsplit(fake.url)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nt: "
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head)
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            connection.sendall(b"a" * (64 << 20))


def test_refused_body_is_not_read_for_ever(fake: Program) -> None:
    address = urlsplit(fake.url)
    head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head + b"content-length: 1000000000\r\n\r\n")
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            connection.sendall(b"a" * (200 << 20))


def test_client_that_leaves_while_it_sends_is_no_error(fake: Program, client: httpx.Client) -> None:
    address = urlsplit(fake.url)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: left-early\r\ncontent-type: application/json\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head + b"content-length: 100\r\n\r\n{")
    eventually(lambda: any(line.get("request_id") == "left-early" for line in fake.log), within_s=5)
    (line,) = [line for line in fake.log if line.get("request_id") == "left-early"]
    assert (line["event"], line["outcome"]) == ("request_finished", "aborted")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "10.evil.example"])
def test_page_that_points_its_own_name_here_is_refused(client: httpx.Client, host: str) -> None:
    answer = client.get("/v1/models", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "permission_denied"


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]:8000", "tokka.localhost", "tokka"]
)
def test_local_names_are_served(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}]
)
def test_body_that_a_foreign_page_could_send_is_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    answer = client.post("/v1/completions", content=b'{"model":"fake","prompt":"x"}', headers=headers)
    assert answer.status_code == 415


def test_compressed_body_is_refused_by_name(client: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = client.post("/v1/completions", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415
    assert "gzip" in answer.json()["error"]["message"]

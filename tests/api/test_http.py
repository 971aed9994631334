"""What goes over the socket: limits of the head, broken HTTP, ids, silence, and what the log says of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.program import Program, eventually, running


@pytest.fixture
def client(fake: Program) -> Iterator[httpx.Client]:
    with fake.client() as client:
        yield client


def raw(program: Program, data: bytes) -> tuple[int, dict[str, str], dict[str, dict[str, str]]]:
    """Send bytes, return status, headers and JSON body of the answer."""
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
        assert text.count(": keep-alive\n\n") >= 3
        assert text.endswith("data: [DONE]\n\n")


def test_prompts_are_not_logged_unless_asked_for() -> None:
    canary = "canary-in-the-prompt"
    body = {"model": "fake", "messages": [{"role": "user", "content": canary}], "max_tokens": 2}
    for options, logged in (([], False), (["--log-prompts"], True)):
        with running("--engine", "fake", "--log-level", "debug", *options) as program, program.client() as client:
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            broken = {**body, "messages": [{"role": canary, "content": canary}]}
            assert client.post("/v1/chat/completions", json=broken).status_code == 400
            assert program.stop() == 0
            assert (canary in str(program.log)) is logged
            assert canary not in program.stderr()


def test_access_line_tells_what_a_request_did(fake: Program, client: httpx.Client) -> None:
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

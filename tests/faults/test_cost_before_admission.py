"""Costs before admission: charged when the headers arrive, bounded in memory, and fair between tenants."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.program import Program, running

MIB = 1 << 20


def key(program: Program, tenant: str = "tenant", **limits: int) -> dict[str, str]:
    """Create a key with these limits; return the headers that carry it."""
    body = {"name": "k", "tenant": tenant, "limits": limits}
    with program.client() as client:
        made = client.post("/admin/keys", headers={"authorization": f"Bearer {ADMIN}"}, json=body)
    assert made.status_code == 201, made.text
    return {"authorization": f"Bearer {made.json()['key']}"}


ADMIN = "admin-key-of-the-test-0123456789"


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running("--engine", "fake", "--admin-key", ADMIN, "--body-memory", "4MiB") as program:
        yield program


@contextlib.contextmanager
def sent(program: Program, head: dict[str, str], body: bytes = b"") -> Iterator[socket.socket]:
    """Send a request's headers and the first part of its body; yield the connection."""
    at = urlsplit(program.url)
    fixed = {"Host": "localhost", "Content-Type": "application/json"}
    lines = [f"{name}: {value}" for name, value in {**fixed, **head}.items()]
    with socket.create_connection((at.hostname, at.port), timeout=30) as raw:
        raw.sendall("\r\n".join(["POST /v1/completions HTTP/1.1", *lines, "", ""]).encode() + body)
        yield raw


def answer_of(raw: socket.socket) -> tuple[int, str]:
    """Return the status and the error code of the first response."""
    data = b""
    while b"}}" not in data:
        piece = raw.recv(65536)
        assert piece, data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def ask(client: httpx.Client, headers: dict[str, str], path: str = "/v1/completions", **fields: object) -> int:
    body = {"model": "fake", "prompt": "Hei", "max_tokens": 2} if path == "/v1/completions" else {}
    return client.post(path, headers=headers, json={**body, **fields}).status_code


def test_key_without_requests_left_is_refused_before_its_body(program: Program) -> None:
    limited = key(program, rpm=1)
    with program.client() as client:
        assert ask(client, limited) == 200
    # The client sends nothing of the body.
    with sent(program, {**limited, "Content-Length": str(MIB // 2)}) as raw:
        assert answer_of(raw) == (429, "rate_limit_exceeded")


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_tokenize_takes_a_request_from_the_key(program: Program, path: str) -> None:
    limited = key(program, rpm=2)
    fields: dict[str, object] = {"prompt": "Hei"} if path == "/tokenize" else {"tokens": [72]}
    with program.client() as client:
        assert [ask(client, limited, path, **fields) for _ in range(3)] == [200, 200, 429]
        assert ask(client, limited) == 429


def test_tokenize_takes_tokens_from_the_key(program: Program) -> None:
    limited = key(program, tpm=1000)
    with program.client() as client:
        assert ask(client, limited, "/tokenize", prompt="x" * 600) == 200
        assert ask(client, limited, "/tokenize", prompt="x" * 600) == 429
        assert ask(client, limited, "/detokenize", tokens=[72] * 401) == 429
        assert ask(client, limited, "/detokenize", tokens=[72] * 390) == 200
        # The token limit leaves nothing for a generation either.
        assert ask(client, limited, prompt="x" * 100) == 429


def test_invalid_request_is_paid_for(program: Program) -> None:
    limited = key(program, rpm=3, tpm=100_000)
    with program.client() as client:
        # The prompt is too long for the context, which the server learns by tokenising it.
        assert ask(client, limited, prompt="x" * 50_000) == 400
        answer = client.get("/v1/models", headers=limited)
    assert int(answer.headers["x-ratelimit-remaining-requests"]) == 2
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 100_000 - 1000


def test_prompt_without_a_chance_is_refused_by_an_estimate(program: Program) -> None:
    limited = key(program, tpm=100)
    with program.client() as client:
        answer = client.post("/v1/completions", headers=limited, json={"model": "fake", "prompt": "x" * 500_000})
    # Without the estimate the server would tokenise it and refuse it as too long for the context.
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_bodies_in_flight_are_bounded_in_all_and_by_tenant(program: Program) -> None:
    # Two bodies of 1 MiB take half of the budget. A third of the same tenant is refused, one of another tenant is not.
    greedy, other = key(program, "greedy"), key(program, "other")
    length = {"Content-Length": str(MIB)}
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(sent(program, {**greedy, **length}, b"{"))
        with sent(program, {**greedy, **length}) as raw:
            assert answer_of(raw) == (503, "server_overloaded")
        with program.client() as client:
            assert ask(client, other) == 200
            assert ask(client, greedy, prompt="x" * 900_000) == 503
    with program.client() as client:
        # The connections are closed, and the server releases the memory of their bodies.
        assert ask(client, greedy, prompt="x" * 900_000) in (400, 503)


def test_body_limit_follows_the_context() -> None:
    long_context = ("--engine-arg", "max_model_len=20000")
    with (
        running("--engine", "fake") as short,
        running("--engine", "fake", *long_context) as long,
        running("--engine", "fake", "--max-body-size", "1KiB") as set_by_hand,
    ):
        for program, size, status in (
            (short, 2 * MIB, 413),
            (long, 2 * MIB, 400),
            (long, 3 * MIB, 413),
            (set_by_hand, 2000, 413),
        ):
            with program.client() as client:
                assert ask(client, {}, prompt="x" * size) == status, size


def test_answer_that_cannot_be_held_is_refused_with_the_remedy() -> None:
    with running("--engine", "fake", "--answer-memory", "1MiB") as program, program.client() as client:
        body = {"model": "fake", "prompt": "Hei", "max_tokens": 4000, "n": 64}
        refused = client.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
        assert "stream: true" in refused.json()["error"]["message"]
        for fits in ({"stream": True}, {"n": 1}, {"max_tokens": 10}):
            assert client.post("/v1/completions", json={**body, **fits}).status_code == 200, fits

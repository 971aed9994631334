"""Paths: a trailing slash on probes, a proxy's prefix, and suggestions for wrong paths."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.program import Program, running
from tokka.api.paths import meant, served_path

KNOWN = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize", "/readyz", "/docs")


@pytest.fixture
def client(fake: Program) -> Iterator[httpx.Client]:
    with fake.client() as client:
        yield client


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/models", "/v1/models"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("//v1/models", "/v1/models"),
        ("/v1//models", "/v1/models"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/api/v1/models", "/v1/models"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/docs/", "/docs"),
        ("/", None),
        ("/nothing", None),
        ("/v1/embeddings", None),
        ("/v1" * 100 + "/models", None),
    ],
)
def test_wrong_path_names_the_right_one(path: str, right: str | None) -> None:
    assert meant(path, KNOWN) == right


def test_long_path_is_compared_with_nothing() -> None:
    assert meant("/v1/chat/completion" + "s" * 100_000, KNOWN) is None


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/models", "/v1/models"),
        ("/v1/v1/models", None),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
    ],
)
def test_unknown_url_error_names_the_right_path(fake: Program, client: httpx.Client, path: str, right: str) -> None:
    # A full URL, because httpx would read the part after two slashes as a host.
    error = client.post(fake.url + path, json={}).json()["error"]
    assert error["code"] == "unknown_url"
    if right:
        assert f"Did you mean {right}?" in error["message"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/health", "/version"])
def test_open_path_answers_with_a_slash_at_its_end(client: httpx.Client, path: str) -> None:
    answer = client.get(f"{path}/", headers={"authorization": ""})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


def test_reference_answers_with_a_slash_at_its_end(client: httpx.Client) -> None:
    page = client.get("/docs/", follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/docs")
    assert client.get("/openapi.json/").json() == client.get("/openapi.json").json()


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/tokka/v1/models", "/v1/models"),
        ("/tokka/openai/v1/models", "/v1/models"),
        ("/tokka/health/", "/health"),
        ("/v1/models", "/v1/models"),
        ("/tokkas/v1/models", "/tokkas/v1/models"),
        ("/tokka", "/tokka"),
        ("/tokka/", "/"),
    ],
)
def test_root_path_is_taken_off(path: str, served: str) -> None:
    assert served_path(path, "/tokka") == served


def test_server_with_a_root_path_serves_both_and_says_so() -> None:
    with running("--engine", "fake", "--root-path", "/tokka/") as program, program.client() as client:
        assert client.get("/tokka/v1/models").json() == client.get("/v1/models").json()
        document = client.get("/tokka/openapi.json").json()
        assert document["servers"] == [{"url": "/tokka"}]
        assert document["paths"]["/v1/models"]["get"]["servers"][1] == {"url": "/tokka/openai"}

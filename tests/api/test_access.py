"""Keys: deny by default, the same refusal whatever was wrong, and nothing of a key in any output."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.program import Program, running

KEY = "secret-key-of-the-test"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Program]:
    with running("--engine", "fake", "--api-key", KEY, "--api-key", "another-key-of-it") as program:
        yield program


@pytest.fixture
def client(guarded: Program) -> Iterator[httpx.Client]:
    with guarded.client() as client:
        yield client


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/health", "/version", "/metrics", "/"])
def test_probes_and_page_need_no_key_on_loopback(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/models/fake",
        "/docs",
        "/openapi.json",
        "/nothing",
        "//livez",
        "/livez/",
        "/LIVEZ",
        "/livez/../v1/models",
        "/ui",
        "//ui/x/page.js",
        "/ui/../v1/models",
    ],
)
def test_everything_else_needs_one(guarded: Program, client: httpx.Client, path: str) -> None:
    # The whole address: the client would take what follows two slashes for a host.
    answer = client.get(guarded.url + path)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        f"Basic {KEY}",
        KEY,
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        "Bearer " + "x" * 9000,
        "Bearer ä",
    ],
)
def test_every_wrong_credential_gets_the_same_answer(client: httpx.Client, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    answer = client.get("/v1/models", headers=headers)  # type: ignore[arg-type]
    expected = client.get("/v1/models", headers={"authorization": "Bearer wrong"})
    assert (answer.status_code, answer.content) == (401, expected.content)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_each_key_is_a_tenant_of_its_own(guarded: Program, client: httpx.Client) -> None:
    for key in (KEY, "another-key-of-it"):
        body = {"model": "fake", "prompt": "x", "max_tokens": 3}
        assert client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}).status_code == 200
    metrics = client.get("/metrics").text
    for tenant in ("key-1", "key-2"):
        assert f'tokka_tokens_total{{kind="completion",model="fake",tenant="{tenant}"}} 3.0' in metrics
    assert KEY not in metrics
    assert KEY not in str(guarded.log)
    assert KEY not in guarded.stderr()


def test_guessable_key_is_used_and_warned_of() -> None:
    with running("--engine", "fake", "--api-key", "k1") as program, program.client() as client:
        assert client.get("/v1/models", headers={"authorization": "Bearer k1"}).status_code == 200
        assert [line["place"] for line in program.log if line["event"] == "guessable_api_key"] == [1]


def test_preflight_is_answered_without_a_key() -> None:
    origin = "https://app.example"
    with running("--engine", "fake", "--api-key", KEY, "--cors-origin", origin) as program, program.client() as client:
        asked = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        answer = client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        refused = client.get("/v1/models", headers={"origin": origin})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == origin


def test_foreign_origin_is_refused_in_openais_form() -> None:
    with running("--engine", "fake", "--cors-origin", "https://app.example") as program, program.client() as client:
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert "access-control-allow-origin" not in answer.headers

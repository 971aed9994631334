"""Access: denied by default, one error for all wrong keys, and direct requests only on a server without keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx
import pytest

from tests.program import Program, running

KEY = "secret-key-of-the-test"
METRICS_KEY = "metrics-key-of-the-test"
ADMIN_KEY = "admin-key-of-the-test"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Program]:
    keys = ("--api-key", KEY, "--api-key", "another-key-of-it", "--metrics-key", METRICS_KEY, "--admin-key", ADMIN_KEY)
    with running("--engine", "fake", *keys) as program:
        yield program


@pytest.fixture
def client(guarded: Program) -> Iterator[httpx.Client]:
    with guarded.client() as client:
        yield client


@pytest.fixture
def keyless(fake: Program) -> Iterator[httpx.Client]:
    with fake.client() as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/startupz", "/health", "/version", "/", "/docs", "/openapi.json"]
)
def test_probes_and_pages_need_no_key(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/models/fake",
        "/metrics",
        "/admin/keys",
        "/nothing",
        "//livez",
        "/LIVEZ",
        "/livez/../v1/models",
        "/ui",
        "//ui/x/page.js",
        "/ui/../v1/models",
    ],
)
def test_everything_else_needs_one(guarded: Program, client: httpx.Client, path: str) -> None:
    # A full URL, because httpx would read the part after two slashes as a host.
    answer = client.get(guarded.url + path)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("folder", ["/ui", "/docs-assets", "/docs"])
def test_public_folder_does_not_open_its_sibling_paths(guarded: Program, folder: str) -> None:
    # http.client sends the path unchanged. httpx would remove the dots.
    address = urlsplit(guarded.url)
    connection = HTTPConnection(str(address.hostname), address.port or 80, timeout=10)
    with closing(connection):
        connection.request("GET", f"{folder}/../v1/models")
        assert connection.getresponse().status in (401, 404)


# -- scopes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "may"),
    [
        (KEY, {"/v1/models"}),
        (METRICS_KEY, {"/metrics"}),
        (ADMIN_KEY, {"/v1/models", "/metrics", "/admin/keys"}),
    ],
)
def test_static_key_has_the_permissions_of_its_option(client: httpx.Client, key: str, may: set[str]) -> None:
    for path in ("/v1/models", "/metrics", "/admin/keys"):
        answer = client.get(path, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == (200 if path in may else 403), path
        if path not in may:
            assert answer.json()["error"]["code"] == "permission_denied"


def test_metrics_open_needs_no_key_and_opens_nothing_else() -> None:
    with running("--engine", "fake", "--api-key", KEY, "--metrics-open") as program, program.client() as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/metrics", headers={"host": "evil.example"}).status_code == 200
        assert client.get("/v1/models").status_code == 401


# -- without keys -----------------------------------------------------------------------------------------------

INDIRECT = [
    *({"x-forwarded-for": "203.0.113.7"}, {"forwarded": "for=203.0.113.7"}, {"via": "1.1 proxy"}),
    *({"x-real-ip": "203.0.113.7"}, {"cf-connecting-ip": "203.0.113.7"}, {"true-client-ip": "203.0.113.7"}),
    *({"host": "llm.example.org"}, {"host": "203.0.113.7"}, {"origin": "https://evil.example"}, {"origin": "null"}),
    {"sec-fetch-site": "cross-site"},
]


@pytest.mark.parametrize("headers", INDIRECT, ids=str)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/model"])
def test_without_keys_only_direct_requests_are_served(
    keyless: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    assert keyless.get(path).status_code == 200
    answer = keyless.get(path, headers=headers)
    assert answer.status_code == 403
    assert "permission_denied" in answer.text
    for remedy in ("tokka keys create", "--metrics-open" if path == "/metrics" else "--"):
        assert remedy in answer.text


def test_without_keys_there_is_no_admin(keyless: httpx.Client) -> None:
    for headers in ({}, {"authorization": "Bearer none"}, *INDIRECT):
        for answer in (keyless.get("/admin/keys", headers=headers), keyless.post("/admin/drain", headers=headers)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
            assert "tokka keys create --name NAME --scope admin" in answer.json()["error"]["message"]


def test_without_keys_the_page_of_an_allowed_origin_is_served() -> None:
    origin = "https://app.example"
    with running("--engine", "fake", "--cors-origin", origin) as program, program.client() as client:
        page = {"origin": origin, "sec-fetch-site": "cross-site"}
        assert client.get("/v1/models", headers=page).status_code == 200
        assert client.get("/admin/keys", headers=page).status_code == 403
        other = client.get("/v1/models", headers={"origin": "https://evil.example"})
        assert other.status_code == 403
        assert "--cors-origin" in other.json()["error"]["message"]


def test_without_keys_beyond_loopback_metrics_need_a_key() -> None:
    with running("--engine", "fake", "--host", "0.0.0.0", "--no-auth") as program:
        url = program.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/models", headers={"x-forwarded-for": "203.0.113.7"}).status_code == 200
        for path in ("/metrics", "/admin/keys"):
            assert httpx.get(f"{url}{path}").status_code == 403


# -- credentials ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        "Bearer " + "x" * 9000,
        "Bearer ä",
    ],
)
def test_every_wrong_credential_gets_the_same_answer(client: httpx.Client, header: str) -> None:
    answer = client.get("/v1/models", headers=[(b"authorization", header.encode())])
    expected = client.get("/v1/models", headers={"authorization": "Bearer wrong"})
    assert (answer.status_code, answer.content) == (401, expected.content)
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", [None, "", "Bearer", f"Basic {KEY}", KEY])
def test_refusal_distinguishes_a_missing_key_from_a_wrong_one(client: httpx.Client, header: str | None) -> None:
    answer = client.get("/v1/models", headers={} if header is None else {"authorization": header})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.json()["error"]["message"].startswith("No API key was sent")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_each_key_is_a_tenant_of_its_own(guarded: Program, client: httpx.Client) -> None:
    for key in (KEY, "another-key-of-it"):
        body = {"model": "fake", "prompt": "x", "max_tokens": 3}
        assert client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}).status_code == 200
    metrics = client.get("/metrics", headers={"authorization": f"Bearer {METRICS_KEY}"}).text
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
        assert "access-control-allow-private-network" not in answer.headers
        private = {**asked, "access-control-request-private-network": "true"}
        answer = client.options("/v1/chat/completions", headers=private)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-private-network"] == "true"
        other = client.options("/v1/chat/completions", headers={**private, "origin": "https://evil.example"})
        assert other.status_code == 400
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

"""A proxy on the same machine does not open a server without keys. A server with keys works behind a proxy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.nginx import nginx
from tests.program import Program, running

ADMIN_KEY = "the-admin-key-of-the-test"
PUBLIC = "llm.example.org"
QUESTION = {"model": "fake", "prompt": "x", "max_tokens": 2}
# Directives of a location besides proxy_pass. By default, nginx sends HTTP/1.0 with `Host: <name in proxy_pass>` and
# `Connection: close`.
PLAIN = ""
NAMED = "proxy_set_header Host $host;"
FORWARDED = "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header X-Forwarded-For $remote_addr;"
REAL_IP = "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header X-Real-IP $remote_addr;"
# The server cannot tell this proxy from a program on the same machine.
SILENT = "proxy_http_version 1.1; proxy_set_header Connection '';"


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("socket") / "tokka.sock")
    with running("--engine", "fake", "--uds", path):
        yield path


@pytest.fixture(params=["tcp", "unix"])
def upstream(request: pytest.FixtureRequest, fake: Program) -> str:
    """Return the address of a server without keys, in the form of proxy_pass."""
    return fake.url if request.param == "tcp" else f"http://unix:{request.getfixturevalue('socket_path')}"


def refusal(answer: httpx.Response) -> str:
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied"), answer.text
    message: str = answer.json()["error"]["message"]
    assert "tokka keys create" in message
    return message


def calls(url: str) -> Iterator[httpx.Response]:
    """Send the requests that a public client of the proxy would send."""
    with httpx.Client(base_url=url, headers={"host": PUBLIC}) as client:
        yield client.get("/v1/models")
        yield client.post("/v1/completions", json=QUESTION)
        yield client.post("/tokenize", json={"prompt": "x"})
        yield client.get("/metrics")
        yield client.get("/model")
        yield client.get("/authenticate_with_key")


def admin_calls(url: str) -> Iterator[httpx.Response]:
    with httpx.Client(base_url=url, headers={"host": PUBLIC}) as client:
        yield client.get("/admin/keys")
        yield client.post("/admin/keys", json={"name": "a", "scopes": ["admin"]})
        yield client.get("/admin/usage")
        yield client.post("/admin/drain")


@pytest.mark.parametrize("more", [PLAIN, NAMED, FORWARDED, REAL_IP], ids=["plain", "named", "forwarded", "real_ip"])
def test_nginx_does_not_open_a_server_without_keys(upstream: str, more: str) -> None:
    with nginx(f"proxy_pass {upstream}; {more}") as url:
        for answer in calls(url):
            body: dict[str, Any] = answer.json()
            if isinstance(body["error"], str):
                # Aitta's paths send errors in OAuth's form.
                assert (answer.status_code, body["error"]) == (403, "permission_denied")
            else:
                refusal(answer)
        for answer in admin_calls(url):
            assert "scope `admin`" in refusal(answer)
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_nginx_that_shows_nothing_reaches_no_admin(upstream: str) -> None:
    with nginx(f"proxy_pass {upstream}; {SILENT}") as url:
        for answer in admin_calls(url):
            assert "scope `admin`" in refusal(answer)


def test_a_page_behind_a_silent_nginx_is_refused(upstream: str) -> None:
    with nginx(f"proxy_pass {upstream}; {SILENT}") as url:
        headers = {"host": PUBLIC, "origin": f"https://{PUBLIC}", "sec-fetch-site": "same-origin"}
        assert "Origin" in refusal(httpx.post(f"{url}/v1/completions", json=QUESTION, headers=headers))


def test_the_unix_socket_serves_a_direct_client(socket_path: str) -> None:
    for name in ("localhost", "tokka"):
        transport = httpx.HTTPTransport(uds=socket_path)
        with httpx.Client(transport=transport, base_url=f"http://{name}") as client:
            assert client.post("/v1/completions", json=QUESTION).status_code == 200
            assert client.get("/metrics").status_code == 200
            for foreign in ({"host": PUBLIC}, {"origin": f"https://{PUBLIC}"}, {"x-forwarded-for": "203.0.113.7"}):
                refusal(client.get("/v1/models", headers=foreign))
                refusal(client.get("/metrics", headers=foreign))
            refusal(client.get("/admin/keys"))


def test_the_unix_socket_is_closed_to_other_users(socket_path: str) -> None:
    found = Path(socket_path).stat()
    assert found.st_uid == os.geteuid()
    assert found.st_mode & 0o007 == 0


@pytest.mark.parametrize("more", [PLAIN, FORWARDED], ids=["plain", "forwarded"])
def test_nginx_serves_requests_with_a_key(more: str) -> None:
    server = running("--engine", "fake", "--admin-key", ADMIN_KEY)
    with server as program, nginx(f"proxy_pass {program.url}; {more}") as url:
        key = {"authorization": f"Bearer {ADMIN_KEY}", "host": PUBLIC, "origin": f"https://{PUBLIC}"}
        assert httpx.post(f"{url}/v1/completions", json=QUESTION, headers=key).status_code == 200
        assert httpx.get(f"{url}/admin/keys", headers=key).status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401


def test_no_auth_opens_a_proxied_server_except_admin() -> None:
    with running("--engine", "fake", "--no-auth") as program:
        with nginx(f"proxy_pass {program.url}; {NAMED}") as url:
            assert httpx.get(f"{url}/v1/models", headers={"host": PUBLIC}).status_code == 200
            for answer in [*admin_calls(url), httpx.get(f"{url}/metrics", headers={"host": PUBLIC})]:
                refusal(answer)
        with program.client() as client:
            assert client.get("/metrics").status_code == 200

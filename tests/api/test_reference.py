"""The API reference over HTTP: its content security policy and its files."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.program import Program


@pytest.fixture
def client(fake: Program) -> Iterator[httpx.Client]:
    with fake.client() as client:
        yield client


def test_the_reference_runs_nothing_else_and_in_no_frame(client: httpx.Client) -> None:
    answer = client.get("/docs")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["style-src"] == policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'self' 'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r'(?:href|src)="(?:https?:)?/', answer.text)


def test_every_file_of_the_reference_is_there(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    files = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(files) == 3
    for path in [*files, "openapi.json"]:
        assert client.get(f"/{path}").status_code == 200, path


@pytest.mark.parametrize(
    "path", ["/docs-assets/", "/docs-assets/none", "/docs-assets/..%2f__init__.py", "/docs/oauth2"]
)
def test_there_is_nothing_else_beside_it(client: httpx.Client, fake: Program, path: str) -> None:
    answer = client.get(fake.url + path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")

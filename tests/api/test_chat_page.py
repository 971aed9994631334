"""The chat page over HTTP: it needs no key, browsers cache it until it changes, and only its own scripts may run."""

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


def files_of(client: httpx.Client) -> list[str]:
    """Return the paths of all files that the page loads."""
    return [f"/{path}" for path in re.findall(r'(?:href|src)="(ui/[^"]+)"', client.get("/").text)]


def test_every_file_of_the_page_is_there_with_its_type(client: httpx.Client) -> None:
    types = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
    files = files_of(client)
    assert len(files) > 20
    for path in files:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == types[path.rpartition(".")[2]]
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_module_that_is_imported_is_loaded_at_once(client: httpx.Client) -> None:
    modules = {path.rpartition("/")[2]: client.get(path).text for path in files_of(client) if path.endswith(".js")}
    imported = {name for text in modules.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert imported == set(modules) - {"page.js", "theme.js"}


def test_the_page_is_asked_for_each_time_and_sent_when_it_changed(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    for tag in (page.headers["etag"], f'"other", W/{page.headers["etag"]}'):
        again = client.get("/", headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_a_file_of_another_version_is_not_found(client: httpx.Client) -> None:
    version = files_of(client)[0].split("/")[2]
    for path in ("/ui/0123456789abcdef/page.js", f"/ui/{version}/index.html", f"/ui/{version}/..%2fcore.py", "/ui/"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url"), path


def test_head_answers_as_get_does(client: httpx.Client) -> None:
    for path in ("/", files_of(client)[0]):
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
        assert head.headers["etag"] == get.headers["etag"]


def test_nothing_inline_and_nothing_from_elsewhere_may_run(client: httpx.Client) -> None:
    page = client.get("/")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page.text)
    assert not re.search(r'(?:href|src)="(?:https?:)?//', page.text)


def test_a_foreign_name_gets_the_page_but_nothing_behind_it(client: httpx.Client) -> None:
    headers = {"host": "evil.example"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get("/v1/models", headers=headers).status_code == 403

"""A page of another site, in a real browser, gets nothing from a server without keys on the same machine."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Route, async_playwright

from tests.program import Program, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

SITE = "https://evil.example"
REBOUND = "rebound.example"
# Like other browsers, and Chromium before its local network checks. REBOUND resolves to this machine.
ARGUMENTS = ["--disable-features=LocalNetworkAccessChecks", f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"]
# Sends requests in every way that a page can; returns the paths that it could read.
CALLS = """async server => {
    const read = [];
    const attempt = async (path, options) => {
        try {
            const answer = await fetch(server + path, options);
            if (answer.type !== "opaque") read.push(path);
        } catch {}
    };
    const post = {method: "POST", body: '{"model": "fake", "prompt": "x", "name": "a"}'};
    for (const path of ["/v1/models", "/metrics", "/admin/keys"]) {
        await attempt(path, {});
        await attempt(path, {mode: "no-cors"});
    }
    for (const path of ["/v1/completions", "/admin/keys", "/admin/drain"]) {
        await attempt(path, {...post, headers: {"content-type": "application/json"}});
        await attempt(path, {...post, mode: "no-cors"});
    }
    return read;
}"""
STATUSES = """async () => {
    const found = [];
    for (const path of ["/v1/models", "/metrics", "/admin/keys"]) found.push((await fetch(path)).status);
    const body = '{"model": "fake", "prompt": "x"}';
    const headers = {"content-type": "application/json"};
    for (const path of ["/v1/completions", "/admin/drain"])
        found.push((await fetch(path, {method: "POST", body, headers})).status);
    return found;
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    # `browser` skips the test if there is no Chromium; this instance has other arguments.
    async with async_playwright() as playwright:
        other = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield await other.new_context()
        await other.close()


def requests_of(program: Program, seen: int) -> list[tuple[str, int]]:
    lines = [line for line in program.log[seen:] if line.get("event") == "request_finished"]
    return [(line["path"], line["status"]) for line in lines]


async def test_a_foreign_page_gets_nothing_from_a_keyless_server(context: BrowserContext, fake: Program) -> None:
    async def page_of_the_site(route: Route) -> None:
        await route.fulfill(body="<!DOCTYPE html><title>Evil</title>", content_type="text/html")

    await context.route(f"{SITE}/**", page_of_the_site)
    page = await context.new_page()
    await page.goto(f"{SITE}/")
    seen = len(fake.log)
    assert await page.evaluate(CALLS, fake.url) == []
    eventually(lambda: ("/admin/drain", 403) in requests_of(fake, seen), within_s=10)
    assert {path for path, _ in requests_of(fake, seen)} >= {"/v1/models", "/v1/completions", "/admin/keys"}
    assert {status for _, status in requests_of(fake, seen)} == {403}


async def test_a_rebound_name_gets_nothing_from_a_keyless_server(context: BrowserContext, fake: Program) -> None:
    page = await context.new_page()
    await page.goto(f"http://{REBOUND}:{urlsplit(fake.url).port}/")
    assert await page.evaluate(STATUSES) == [403] * 5

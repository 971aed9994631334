"""Fixtures of the page tests: one Chromium for all tests, and a separate profile for each test."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.needs import need
from tests.program import Program, running
from tests.web.visitor import Visitor, visit

KEY = "tk-key-of-the-page-tests"
SLOW_ANSWER = "Once upon a time there was a reindeer who wrote slowly. " * 20

# Attacks that a model might write, in every kind of Markdown.
ATTACKS = """# <img src=x onerror=alert(1)>

<script>alert(2)</script> **<svg onload=alert(3)>**

[one](javascript:alert(4)) [two](JaVaScRiPt:alert(5)) [three](data:text/html,<script>alert(6)</script>)
[four](vbscript:alert(7)) <javascript:alert(8)> [five](//evil.example) ![six](https://evil.example/pixel.png)
[seven](https://good.example/"onmouseover="alert(9)) `</code><script>alert(10)</script>`

```"><script>alert(11)</script>
</code></pre><script>alert(12)</script>
```

| <script>alert(13)</script> | b |
|---|---|
| <iframe srcdoc="<script>alert(14)</script>"> | [x](javascript:alert(15)) |

- <a href="javascript:alert(16)">item</a>
> <style>* { display: none }</style>
"""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    need("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"))
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser) -> AsyncIterator[Visitor]:
    """Yield a visitor with a desktop window; check at the end that nothing went wrong in the browser."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor = await visit(context)
    yield visitor
    await context.close()
    assert visitor.troubles == []


@pytest.fixture(scope="session")
def slow() -> Iterator[Program]:
    """Start a server that writes 50 characters a second and requires a key."""
    script = ["--engine-arg", f"answer={SLOW_ANSWER}", "--engine-arg", "token_delay_s=0.02"]
    with running("--engine", "fake", "--api-key", KEY, *script) as program:
        yield program


@pytest.fixture(scope="session")
def hostile() -> Iterator[Program]:
    with running("--engine", "fake", "--engine-arg", f"answer={ATTACKS}") as program:
        yield program


@pytest_asyncio.fixture(loop_scope="session")
async def guest(visitor: Visitor, slow: Program) -> Visitor:
    """Return a visitor with a key, on the page of the slow server."""
    await visitor.page.add_init_script(f"sessionStorage.setItem('tokka.key', '{KEY}')")
    await visitor.open(slow.url)
    return visitor

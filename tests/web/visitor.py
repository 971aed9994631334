"""A visitor with a browser: opens the page, writes, reads, and notes everything that goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import BrowserContext, ConsoleMessage, Locator, Page, Request, expect

ANSWER_MS = 60_000
SCROLLED = """async ([above, below]) => {
  const scroller = document.getElementById('scroller');
  const place = () => [scroller.scrollTop, scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop];
  while (place()[0] < above || place()[1] < below) await new Promise(requestAnimationFrame);
  return place();
}"""


@dataclass
class Visitor:
    """A tab with the page, its requests, and everything that went wrong in it."""

    page: Page
    url: str = ""
    # Errors that a page must not cause: logged errors, policy breaches, dialogs, requests to other hosts.
    troubles: list[str] = field(default_factory=list)
    # Statuses that this test provokes; the browser logs each as an error.
    provoked: set[int] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"uncaught: {error}"))
        self.page.on("dialog", lambda dialog: self.troubles.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._note_request)

    async def open(self, url: str, *, ready: bool = True) -> None:
        self.url = url
        await self.page.goto(url)
        if ready:
            await expect(self.at("#count")).to_contain_text("tokens")

    def at(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def answers(self) -> Locator:
        return self.at(".answer")

    @property
    def last(self) -> Locator:
        return self.answers.last

    async def say(self, text: str) -> None:
        await self.at("#draft").fill(text)
        await self.at("#draft").press("Enter")

    async def ended(self) -> None:
        """Wait until the answer has ended."""
        await expect(self.last.locator(".ending")).to_be_visible(timeout=ANSWER_MS)
        await expect(self.at("#send")).to_be_visible()

    async def ask(self, text: str) -> str:
        """Send a message; return the answer as the page shows it."""
        await self.say(text)
        await self.ended()
        return await self.last.locator(".prose").inner_text()

    async def set(self, label: str, value: str) -> None:
        await self.page.get_by_label(label).fill(value)

    async def scrolled(self, above: int, below: int) -> tuple[float, float]:
        """Wait for at least `above` pixels above the visible part and `below` pixels below it; return both."""
        top, rest = await self.page.evaluate(SCROLLED, [above, below])
        return top, rest

    async def leave(self) -> None:
        """Close the page before its server ends."""
        await self.page.close()

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """Return the JSON bodies of POST requests to this path."""
        return [r.post_data_json for r in self.requests if urlsplit(r.url).path == path and r.post_data_json]

    async def module(self, name: str) -> str:
        """Return the address of one of the page's modules."""
        link = self.at(f"link[rel=modulepreload][href$='/{name}']")
        address: str = await link.evaluate("link => link.href")
        return address

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if any(f"responded with a status of {status}" in message.text for status in self.provoked):
            return
        self.troubles.append(f"{message.type}: {message.text}")

    def _note_request(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.troubles.append(f"foreign request: {request.url}")


async def visit(context: BrowserContext) -> Visitor:
    visitor = Visitor(await context.new_page())
    visitor.watch()
    return visitor

"""A scripted HTTP server. It sends the test's responses at known times and records the requests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.bench.records import HEAD, chunked

Answer = Callable[["Seen", asyncio.StreamWriter], Awaitable[None]]
END = b"0\r\n\r\n"


@dataclass
class Seen:
    """The server's URL, and the requests that it has got."""

    url: str = ""
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    # Notified when a request has arrived.
    came: asyncio.Condition = field(default_factory=asyncio.Condition)


@asynccontextmanager
async def scripted(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Seen]:
    seen = Seen()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await _one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length"))
        seen.bodies.append(await reader.readexactly(int(length)))
        seen.heads.append(head)
        seen.running += 1
        seen.most_running = max(seen.most_running, seen.running)
        async with seen.came:
            seen.came.notify_all()
        try:
            await answer(seen, writer)
            await writer.drain()
        finally:
            seen.running -= 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    seen.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield seen


def text(content: str) -> str:
    return f'data: {{"choices":[{{"delta":{{"content":"{content}"}},"finish_reason":null}}]}}\n\n'


def finish(tokens: int) -> bytes:
    usage = f'data: {{"choices":[],"usage":{{"prompt_tokens":9,"completion_tokens":{tokens}}}}}\n\n'
    return chunked('data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n', usage, "data: [DONE]\n\n") + END


async def at_once(_: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer with two tokens in one event."""
    writer.write(HEAD + chunked(text("a b")) + finish(tokens=2))

"""Bytes around a generation's events: comments in a silent stream, and nothing after the end of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from tokka.api import sse
from tokka.api.deps import Call
from tokka.api.respond import GenerationResponse
from tokka.core import RequestRecord
from tokka.parsing.bodies import BodyParser
from tokka.protocol.completions import CompletionEncoder, CompletionRequest

KEEP_ALIVE_S = 0.02


class Generation:
    """A generation that ends without an event after `after_s` seconds."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s

    async def __aiter__(self) -> AsyncIterator[Any]:
        await asyncio.sleep(self._after_s)
        return
        yield

    async def aclose(self) -> None:
        pass


async def written_to_a_slow_reader(after_s: float, ends_after_s: float) -> list[bytes]:
    """Return the written bytes if the client reads the end of its stream after `ends_after_s` seconds."""
    written: list[bytes] = []

    async def write(message: Any) -> None:
        if message["type"] == "http.response.body":
            if not message.get("more_body", False):
                await asyncio.sleep(ends_after_s)
            written.append(message["body"])

    messages = [{"type": "http.request", "body": b'{"model": "m", "prompt": "a", "stream": true}', "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        # The client stays connected.
        await asyncio.Event().wait()
        return None

    async def opened(*_: Any) -> Any:
        return Generation(after_s)

    parser = BodyParser()
    scope = {
        "type": "http",
        "headers": [(b"content-type", b"application/json")],
        "state": {"write": write, "body_memory": SimpleNamespace(release=lambda: None)},
    }
    services = SimpleNamespace(
        bodies=parser,
        dispatcher=SimpleNamespace(open=opened),
        keep_alive_s=KEEP_ALIVE_S,
        log_prompts=False,
        fingerprint="fp",
    )
    call = Call(services, RequestRecord(id="req_1", arrived_s=0), None, scope)  # type: ignore[arg-type]
    response = GenerationResponse(call, CompletionRequest, CompletionEncoder)
    await response(scope, receive, write)
    await parser.close()
    return written


async def test_stream_that_is_silent_gets_comments() -> None:
    written = await written_to_a_slow_reader(KEEP_ALIVE_S * 5, 0)
    assert written[0] == sse.KEEP_ALIVE
    assert written[-2:] == [sse.DONE, b""]


async def test_nothing_follows_the_end_of_a_stream() -> None:
    written = await written_to_a_slow_reader(0, KEEP_ALIVE_S * 10)
    assert written == [sse.DONE, b""]

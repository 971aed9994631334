"""Around a generation's events: comments in a silent stream, nothing after its end, and no body while it is open."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from tokka.api.deps import Call
from tokka.api.respond import GenerationResponse
from tokka.api.sinks import StreamSink
from tokka.core import Finished, RequestRecord, Usage
from tokka.engine.base import Sink
from tokka.errors import EngineError
from tokka.parsing.bodies import BodyParser
from tokka.protocol import sse
from tokka.protocol.completions import CompletionEncoder, CompletionRequest

KEEP_ALIVE_S = 0.02


class Generation:
    """A generation that ends without an event after `after_s` seconds."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s

    async def run(self, sink: Sink) -> None:
        await asyncio.sleep(self._after_s)

    async def aclose(self) -> None:
        pass


class Wire:
    """A wire that keeps the written pieces."""

    is_full = False

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    async def drain(self) -> None:
        pass

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        pass


async def written_to_a_slow_reader(after_s: float, ends_after_s: float) -> list[bytes]:
    """Return the written bytes if the client reads the end of its stream after `ends_after_s` seconds."""
    wire = Wire()
    await answer(Generation(after_s), wire, ends_after_s)
    return wire.written


async def answer(generation: Any, wire: Wire, ends_after_s: float = 0, prompt: int = 1) -> None:
    """Respond with the generation to a stream's request with a prompt of so many characters."""

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(ends_after_s)
            wire.write(message["body"])

    given = False

    async def receive() -> Any:
        nonlocal given
        if not given:
            given = True
            body = b'{"model": "m", "prompt": "%b", "stream": true}' % (b"a" * prompt)
            return {"type": "http.request", "body": body, "more_body": False}
        # The client stays connected.
        await asyncio.Event().wait()
        return None

    async def opened(*_: Any) -> Any:
        return generation

    parser = BodyParser()
    scope = {
        "type": "http",
        "headers": [(b"content-type", b"application/json")],
        "state": {"wire": wire, "body_memory": SimpleNamespace(release=lambda: None)},
    }
    services = SimpleNamespace(
        bodies=parser,
        dispatcher=SimpleNamespace(open=opened),
        keep_alive_s=KEEP_ALIVE_S,
        hold_s=0.0,
        fingerprint="fp",
    )
    call = Call(services, RequestRecord(id="req_1", arrived_s=0), None, scope)  # type: ignore[arg-type]
    response = GenerationResponse(call, CompletionRequest, CompletionEncoder)
    await response(scope, receive, send)
    await parser.close()


async def test_stream_that_is_silent_gets_comments() -> None:
    written = await written_to_a_slow_reader(KEEP_ALIVE_S * 5, 0)
    assert written[0] == sse.KEEP_ALIVE
    assert written[-2:] == [sse.DONE, b""]


async def test_nothing_follows_the_end_of_a_stream() -> None:
    written = await written_to_a_slow_reader(0, KEEP_ALIVE_S * 10)
    assert written == [sse.DONE, b""]


async def test_open_stream_keeps_neither_body_nor_prompt() -> None:
    prompt, held = 200_000, []

    class Watching(Generation):
        async def run(self, sink: Sink) -> None:
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])

    await answer(Watching(0), Wire())
    tracemalloc.start()
    try:
        await answer(Watching(0), Wire(), prompt=prompt)
    finally:
        tracemalloc.stop()
    assert held[1] < prompt / 2


class SlowWire(Wire):
    """A wire whose client reads nothing before `is_read`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_read = asyncio.Event()

    async def drain(self) -> None:
        await self.is_read.wait()


async def test_no_comment_follows_the_end_of_an_unread_stream() -> None:
    encoder = CompletionEncoder(
        CompletionRequest.model_validate({"model": "m", "prompt": "x"}).answer_form(), "id", "fp"
    )
    error = EngineError("It died.")
    endings: list[Callable[[StreamSink], Coroutine[Any, Any, None]]] = [
        lambda sink: sink.give(Finished(Usage(1, 1))),
        lambda sink: sink.fail(error),
    ]
    for end in endings:
        wire = SlowWire()
        sink = StreamSink(encoder, wire)
        sink.keep_alive(KEEP_ALIVE_S)
        ending = asyncio.create_task(end(sink))
        await asyncio.sleep(3 * KEEP_ALIVE_S)
        wire.is_read.set()
        await ending
        assert sse.KEEP_ALIVE not in wire.written

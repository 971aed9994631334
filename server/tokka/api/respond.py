"""One way out for every generation: server-sent events, or the same chunks folded into one JSON answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol

import orjson
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokka.api import sse
from tokka.api.deps import Services
from tokka.core import Event, GenerateRequest, RequestRecord
from tokka.dispatch import Generation
from tokka.errors import EngineError, TokkaError

log = structlog.get_logger("tokka.respond")


class Encoder(Protocol):
    """A wire format: events to chunks, and chunks to the plain answer."""

    def feed(self, event: Event) -> list[dict[str, Any]]: ...

    def encode(self, event: Event) -> list[bytes]: ...

    def fold(self, chunks: list[dict[str, Any]]) -> dict[str, Any]: ...


def respond(
    request: GenerateRequest, encoder: Encoder, services: Services, record: RequestRecord, *, stream: bool
) -> Response:
    """Return the response that will run the generation and carry it."""
    record.stream = stream
    if services.log_prompts:
        record.prompt = [asdict(prompt) for prompt in request.prompts]

    def open_generation() -> Awaitable[Generation]:
        return services.dispatcher.open(request, record)

    return GenerationResponse(open_generation, encoder, record, stream=stream, keep_alive_s=services.keep_alive_s)


class GenerationResponse(Response):
    """Opens a generation, answers with it, and closes it, however the answer ends.

    What refuses the request is raised before the first byte, and rendered further out.
    """

    def __init__(
        self,
        open_generation: Callable[[], Awaitable[Generation]],
        encoder: Encoder,
        record: RequestRecord,
        *,
        stream: bool,
        keep_alive_s: float,
    ) -> None:
        self.background = None
        self.status_code = 200
        self._open_generation = open_generation
        self._encoder = encoder
        self._record = record
        self._stream = stream
        self._keep_alive_s = keep_alive_s
        self._sent_s = 0.0
        self._is_sending = False
        self._is_client_gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        write = scope["state"]["write"]
        work = asyncio.current_task()
        assert work is not None
        # Nobody else watches for a client that has gone: without this it would wait in the queue, and its generation
        # run to the end.
        watch = asyncio.create_task(self._watch(receive, write, work))
        try:
            await self._run(send, write)
        except asyncio.CancelledError:
            if not self._is_client_gone:
                raise
            work.uncancel()
        finally:
            watch.cancel()

    async def _run(self, send: Send, write: Send) -> None:
        generation = await self._open_generation()
        try:
            await (self._send_stream(generation, send, write) if self._stream else self._send_plain(generation, send))
        finally:
            await generation.aclose()

    async def _watch(self, receive: Receive, write: Send, work: asyncio.Task[Any]) -> None:
        """Cancel the work when the client disconnects; keep a silent stream alive."""
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    message = await receive()
            except TimeoutError:
                # A stream that waits for its reader is not silent, and nothing may slip in behind its end.
                silent_s = time.monotonic() - self._sent_s
                if self._sent_s and not self._is_sending and silent_s >= self._keep_alive_s * 0.5:
                    await self._send(write, sse.KEEP_ALIVE)
                continue
            if message["type"] == "http.disconnect":
                # Whoever has an outcome already has been answered in full.
                self._record.outcome = self._record.outcome or "aborted"
                self._is_client_gone = True
                work.cancel()
                return

    async def _send_plain(self, generation: Generation, send: Send) -> None:
        chunks = [chunk async for event in generation for chunk in self._encoder.feed(event)]
        body = orjson.dumps(self._encoder.fold(chunks))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(self, generation: Generation, send: Send, write: Send) -> None:
        """`send`: with the middleware, for the head. `write`: without it, for the pieces, which nobody looks at."""
        await send({"type": "http.response.start", "status": 200, "headers": sse.HEADERS})
        self._sent_s = time.monotonic()
        try:
            async for event in generation:
                if chunks := self._encoder.encode(event):
                    await self._send(write, b"".join(map(sse.json_event, chunks)))
        except TokkaError as error:
            await self._send(write, sse.event(error.body()))
        except Exception:
            # The headers are out, so the stream itself has to say it; a bare end would look like a full answer.
            log.exception("stream_failed")
            await self._send(write, sse.event(EngineError("The server had an error while generating.").body()))
        await self._send(write, sse.DONE)
        # No comment may follow the end, however long the client takes to read it.
        self._sent_s = 0.0
        await write({"type": "http.response.body", "body": b""})

    async def _send(self, write: Send, data: bytes) -> None:
        self._sent_s = time.monotonic()
        self._is_sending = True
        await write({"type": "http.response.body", "body": data, "more_body": True})
        self._is_sending = False

"""Responses of all generations: server-sent events, or the same chunks folded into one JSON body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokka.api import sse
from tokka.api.deps import Call, read_body
from tokka.core import GenerateRequest
from tokka.dispatch.dispatcher import Generation
from tokka.errors import EngineError, TokkaError
from tokka.parsing.bodies import Parsable
from tokka.protocol.chunks import AnswerForm, StreamEncoder
from tokka.protocol.folding import Piece
from tokka.protocol.generation import ParsedGeneration

log = structlog.get_logger("tokka.respond")

# Bytes of a long response that are written before other tasks may run.
_WRITE_BYTES = 64 << 10


class GenerationResponse(Response):
    """Read the body, open a generation, send its result, and close it however the response ends.

    Raises errors before the first byte; the middleware renders them.
    """

    def __init__(
        self,
        call: Call,
        model: type[Parsable[ParsedGeneration]],
        encoder: Callable[[AnswerForm, str, str], StreamEncoder],
    ) -> None:
        self.background = None
        self.status_code = 200
        self._call = call
        self._model = model
        self._make_encoder = encoder
        self._record = call.record
        self._keep_alive_s = call.services.keep_alive_s
        self._sent_s = 0.0
        self._is_sending = False
        self._is_client_gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(scope, receive)
        write = scope["state"]["write"]
        work = asyncio.current_task()
        assert work is not None
        # Only this task notices a client that has gone. Without it, the request would stay queued, and its generation
        # would run to the end.
        watch = asyncio.create_task(self._watch(receive, write, work))
        try:
            await self._run(raw, send, write)
        except asyncio.CancelledError:
            if not self._is_client_gone:
                raise
            work.uncancel()
        finally:
            watch.cancel()

    async def _run(self, raw: bytes, send: Send, write: Send) -> None:
        parsed = await self._call.parse_raw(self._model, raw)
        del raw
        request, form = parsed.request, parsed.form
        self._record.stream = form.stream
        if self._call.services.log_prompts:
            self._record.prompt = [asdict(prompt) for prompt in request.prompts]
        encoder = self._make_encoder(form, request.id, self._call.services.fingerprint)
        generation = await self._open(request)
        del parsed, request
        try:
            if form.stream:
                await self._send_stream(generation, encoder, send, write)
            else:
                await self._send_plain(generation, encoder, send, write)
        finally:
            await generation.aclose()

    async def _open(self, request: GenerateRequest) -> Generation:
        return await self._call.services.dispatcher.open(request, self._record, self._call.allowance)

    async def _watch(self, receive: Receive, write: Send, work: asyncio.Task[Any]) -> None:
        """Cancel the work when the client disconnects, and send keep-alives while a stream is silent."""
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    message = await receive()
            except TimeoutError:
                # A stream that waits for its reader is not silent, and nothing may follow its end.
                silent_s = time.monotonic() - self._sent_s
                if self._sent_s and not self._is_sending and silent_s >= self._keep_alive_s * 0.5:
                    await self._send(write, sse.KEEP_ALIVE)
                continue
            if message["type"] == "http.disconnect":
                # A request with an outcome has already been answered in full.
                self._record.outcome = self._record.outcome or "aborted"
                self._is_client_gone = True
                work.cancel()
                return

    async def _send_plain(self, generation: Generation, encoder: StreamEncoder, send: Send, write: Send) -> None:
        fold = encoder.fold()
        async for event in generation:
            for chunk in encoder.feed(event):
                fold.add(chunk)
        pieces = fold.pieces()
        size = sum(map(len, pieces))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in _parts(pieces):
            await write({"type": "http.response.body", "body": part, "more_body": True})
            if size > _WRITE_BYTES:
                # Let the written bytes go out. Only then does the next write wait for a slow client.
                await asyncio.sleep(0)
        await write({"type": "http.response.body", "body": b""})

    async def _send_stream(self, generation: Generation, encoder: StreamEncoder, send: Send, write: Send) -> None:
        """Send the chunks as events. `send`: through the middleware, for the headers. `write`: bypasses it."""
        await send({"type": "http.response.start", "status": 200, "headers": sse.HEADERS})
        self._sent_s = time.monotonic()
        try:
            async for event in generation:
                await self._send_chunks(write, map(sse.json_event, encoder.encode(event)))
        except TokkaError as error:
            self._record.reason = error.code
            await self._send(write, sse.event(error.body()))
        except Exception as fault:
            # The headers are sent, so the stream carries the error. A bare end would look like a complete response.
            self._record.outcome, self._record.reason = "error", type(fault).__name__
            log.exception("stream_failed")
            await self._send(write, sse.event(EngineError("The server had an error while generating.").body()))
        await self._send(write, sse.DONE)
        # No keep-alive may follow the end, however slowly the client reads it.
        self._sent_s = 0.0
        await write({"type": "http.response.body", "body": b""})

    async def _send_chunks(self, write: Send, chunks: Iterator[bytes]) -> None:
        """Send the chunks of one event together, in parts if they are long, like a prompt echoed for many choices."""
        waiting: list[bytes] = []
        size = 0
        for chunk in chunks:
            waiting.append(chunk)
            size += len(chunk)
            if size > _WRITE_BYTES:
                await self._send(write, b"".join(waiting))
                await asyncio.sleep(0)
                waiting, size = [], 0
        if waiting:
            await self._send(write, b"".join(waiting))

    async def _send(self, write: Send, data: bytes) -> None:
        self._sent_s = time.monotonic()
        self._is_sending = True
        await write({"type": "http.response.body", "body": data, "more_body": True})
        self._is_sending = False


def _parts(pieces: Sequence[Piece]) -> Iterator[bytes]:
    """Yield the pieces joined into parts of about `_WRITE_BYTES`."""
    waiting: list[Piece] = []
    size = 0
    for piece in pieces:
        for at in range(0, len(piece), _WRITE_BYTES):
            # Slice a long piece without a copy before it is written.
            part = memoryview(piece)[at : at + _WRITE_BYTES]
            waiting.append(part)
            size += len(part)
            if size >= _WRITE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)

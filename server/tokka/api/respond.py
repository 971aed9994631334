"""Responses of all generations: server-sent events, or the same chunks folded into one JSON body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Generic

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokka.api.deps import Call, read_body
from tokka.api.headers import held_s
from tokka.api.sinks import WRITE_BYTES, FoldSink, StreamSink
from tokka.api.wire import AsgiWire, Wire
from tokka.dispatch.generation import Generation
from tokka.dispatch.hold import Hold
from tokka.engine.base import Sink
from tokka.errors import GenerationFailed, TokkaError
from tokka.parsing.bodies import Parsable
from tokka.protocol import sse
from tokka.protocol.chunks import Encoder, Form
from tokka.protocol.folding import Piece
from tokka.protocol.generation import ParsedGeneration

log = structlog.get_logger("tokka.respond")

_END = {"type": "http.response.body", "body": b""}


class GenerationResponse(Response, Generic[Form]):
    """Read the body, open a generation, send its result, and close it however the response ends.

    Raises errors before the first byte; `Endpoints` renders them.
    """

    def __init__(
        self,
        call: Call,
        model: type[Parsable[ParsedGeneration[Form]]],
        encoder: Callable[[Form, str, str], Encoder],
    ) -> None:
        self.background = None
        self.status_code = 200
        self._call = call
        self._model = model
        self._make_encoder = encoder
        self._record = call.record
        self._is_client_gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire: Wire = scope["state"].get("wire") or AsgiWire(receive, send)
        raw = await read_body(scope, receive)
        self._body_bytes = len(raw)
        work = asyncio.current_task()
        assert work is not None
        # Otherwise the request of a client that has gone would stay queued, and its generation would run to the end.
        wire.watch(partial(self._on_gone, work))
        try:
            parsed = await self._resolve(await self._call.parse_raw(self._model, raw))
            answer = self._answer(parsed, send, wire)
            # A stream may stay open for long. It needs neither its body nor its prompts.
            del raw, parsed
            await answer
        except asyncio.CancelledError:
            if not self._is_client_gone:
                raise
            work.uncancel()
        finally:
            wire.watch(None)

    def _on_gone(self, work: asyncio.Task[Any]) -> None:
        # A request with an outcome has already been answered in full.
        self._record.outcome = self._record.outcome or "aborted"
        self._is_client_gone = True
        work.cancel()

    async def _answer(self, parsed: ParsedGeneration[Form], send: Send, wire: Wire) -> None:
        encoder = self._make_encoder(parsed.form, parsed.request.id, self._call.services.fingerprint)
        if parsed.form.stream and (hold := self._hold(parsed.request.model)) is not None:
            waiting = [parsed]
            del parsed
            try:
                await self._send_stream(partial(self._run_held, hold, waiting), encoder, send, wire)
            finally:
                hold.release()
            return
        generation = await self._open(parsed)
        del parsed
        try:
            if self._record.stream:
                await self._send_stream(generation.run, encoder, send, wire)
            else:
                await self._send_plain(generation, encoder, send)
        finally:
            await generation.aclose()

    async def _open(self, parsed: ParsedGeneration[Form]) -> Generation:
        request, services = parsed.request, self._call.services
        self._record.stream = parsed.form.stream
        return await services.dispatcher.open(request, self._record, self._call.allowance)

    def _hold(self, model: str) -> Hold | None:
        """Return the wait of a stream for a model without a replica; None if it does not wait.

        Raises InvalidRequest, ServerOverloaded.
        """
        wait_s = held_s(self._call.scope, self._call.services.hold_s)
        if not wait_s:
            return None
        return self._call.services.dispatcher.hold(model, self._record, self._body_bytes, wait_s)

    async def _run_held(self, hold: Hold, waiting: list[ParsedGeneration[Form]], sink: Sink) -> None:
        """Wait for a replica, then generate. `waiting`: the request, which nothing keeps once it runs."""
        await hold.wait()
        generation = await self._open(waiting.pop())
        hold.release()
        try:
            await generation.run(sink)
        finally:
            await generation.aclose()

    async def _resolve(self, parsed: ParsedGeneration[Form]) -> ParsedGeneration[Form]:
        """Return the request with the state that it refers to. An endpoint with state replaces this."""
        return parsed

    def _sink(self, sink: Sink, encoder: Encoder) -> Sink:
        """Return the sink of the generation. An endpoint with state replaces this."""
        return sink

    async def _send_plain(self, generation: Generation, encoder: Encoder, send: Send) -> None:
        sink = FoldSink(encoder)
        await generation.run(self._sink(sink, encoder))
        pieces = sink.pieces()
        size = sum(map(len, pieces))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in _parts(pieces):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if size > WRITE_BYTES:
                # Let the written bytes go out. Only then does the next write wait for a slow client.
                await asyncio.sleep(0)
        await send(_END)

    async def _send_stream(
        self, run: Callable[[Sink], Coroutine[Any, Any, None]], encoder: Encoder, send: Send, wire: Wire
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": sse.HEADERS})
        sink = StreamSink(encoder, wire)
        sink.keep_alive(self._call.services.keep_alive_s)
        try:
            await run(self._sink(sink, encoder))
        except TokkaError as error:
            self._record.reason = error.code
            await sink.fail(error)
        except Exception as fault:
            # The headers are sent, so the stream carries the error. A bare end would look like a complete response.
            self._record.outcome, self._record.reason = "error", type(fault).__name__
            log.exception("stream_failed")
            await sink.fail(GenerationFailed())
        finally:
            sink.keep_alive(None)
        if encoder.end:
            await sink.send(encoder.end)
        await send(_END)


def _parts(pieces: Sequence[Piece]) -> Iterator[bytes]:
    """Yield the pieces joined into parts of about `WRITE_BYTES`."""
    if sum(map(len, pieces)) <= WRITE_BYTES:
        yield b"".join(pieces)
        return
    waiting: list[Piece] = []
    size = 0
    for piece in pieces:
        for at in range(0, len(piece), WRITE_BYTES):
            # Slice a long piece without a copy before it is written.
            part = memoryview(piece)[at : at + WRITE_BYTES]
            waiting.append(part)
            size += len(part)
            if size >= WRITE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)

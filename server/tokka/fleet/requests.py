"""The worker's side of requests: runs the gateway's requests and calls on the engine, and sends their events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from tokka.core import Event
from tokka.engine.base import Engine
from tokka.errors import InternalError, TokkaError
from tokka.fleet.connection import Connection
from tokka.protocol.worker import messages
from tokka.protocol.worker.events import packed_event
from tokka.protocol.worker.requests import packed_error, packed_ids, prompt_of, request_of

log = structlog.get_logger("tokka.fleet")


class Requests:
    """The requests and calls of one gateway.

    A request is one task: it prepares, waits for Go, runs. Abort cancels it in any state. `engine_of`: returns the
    engine, or raises ModelStarting. `send_stats`: called before the last message of a request.
    """

    def __init__(self, engine_of: Callable[[], Engine], connection: Connection, send_stats: Callable[[], None]) -> None:
        self._engine_of = engine_of
        self._connection = connection
        self._send_stats = send_stats
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Set when the gateway says Go.
        self._go: dict[int, asyncio.Event] = {}

    def take(self, message: Any) -> None:
        """Take a message about a request or call. One about a request that is over is dropped."""
        match message:
            case messages.Go(number):
                if (go := self._go.get(number)) is not None:
                    go.set()
            case messages.Abort(number):
                if (task := self._tasks.get(number)) is not None:
                    task.cancel()
            case _:
                number = message.request
                if isinstance(message, messages.Open):
                    self._go[number] = asyncio.Event()
                self._tasks[number] = task = asyncio.create_task(self._work(message))
                # Also if the task is cancelled before it begins.
                task.add_done_callback(lambda _: self._forget(number))

    @property
    def count(self) -> int:
        """The open requests and calls."""
        return len(self._tasks)

    async def idle(self) -> None:
        """Return when no request or call is open."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    def close(self) -> None:
        """Stop all requests and calls."""
        for task in self._tasks.values():
            task.cancel()

    def _forget(self, number: int) -> None:
        self._tasks.pop(number, None)
        self._go.pop(number, None)

    async def _work(self, message: Any) -> None:
        """Serve a request or call, and send its error if it fails."""
        number = message.request
        try:
            await (self._run(message) if isinstance(message, messages.Open) else self._call(message))
        except Exception as error:
            if not isinstance(error, TokkaError):
                log.error("request_failed", error=type(error).__name__, exc_info=error)
                error = InternalError("The server failed on this request.")
            self._send_stats()
            self._connection.put(messages.Failed(number, packed_error(error)))

    async def _run(self, message: messages.Open) -> None:
        number = message.request
        go = self._go[number]
        prepared = await self._engine_of().prepare(request_of(message))
        del message
        accepted = prepared.accepted
        ids = [packed_ids(token_ids) for token_ids in accepted.prompt_token_ids]
        allowed = list(accepted.allowed_tokens)
        self._connection.send(messages.Accepted(number, ids, allowed, accepted.dimensions))
        del accepted, ids
        await go.wait()
        running = prepared.run(_WireSink(number, self._connection))
        # A long prompt takes a megabyte, and a stream may stay open for long.
        del prepared
        usage = await running
        self._send_stats()
        self._connection.put(messages.Completed(number, usage))

    async def _call(self, message: Any) -> None:
        engine, answer = self._engine_of(), self._connection.put
        match message:
            case messages.Tokenize(number, prompt, tenant):
                answer(messages.TokenIds(number, packed_ids(await engine.tokenize(prompt_of(prompt), tenant))))
            case messages.Detokenize(number, token_ids, tenant):
                answer(messages.Texts(number, [await engine.detokenize(token_ids, tenant)]))
            case messages.TokenTexts(number, token_ids, tenant):
                answer(messages.Texts(number, await engine.token_texts(token_ids, tenant)))
            case messages.Probe(number):
                await engine.ping()
                answer(messages.Texts(number, []))


class _WireSink:
    """Sends a request's events. Implements `Sink`."""

    __slots__ = ("_connection", "_number")

    def __init__(self, number: int, connection: Connection) -> None:
        self._number = number
        self._connection = connection

    def take(self, event: Event) -> bool:
        self._connection.put(packed_event(self._number, event))
        return not self._connection.is_full

    async def give(self, event: Event) -> None:
        self.take(event)
        await self._connection.drain()

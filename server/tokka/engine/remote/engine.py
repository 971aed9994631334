"""An engine in another process: a `tokka worker`, at the other end of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tokka.core import (
    Accepted,
    ChoiceDone,
    Embedding,
    GenerateRequest,
    Prompt,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from tokka.engine.base import Prepared, ReportPhase, Sink
from tokka.engine.generation.delivery import Delivery
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import EngineDied, InvalidRequest, StartupError, TokkaError
from tokka.protocol.worker import messages
from tokka.protocol.worker.events import EVENT_MESSAGES, EventMessage, event_of
from tokka.protocol.worker.requests import error_of, ids_of, open_of, packed_prompt

_ANSWERS = (messages.Accepted, messages.TokenIds, messages.Texts)


class Link(Protocol):
    """The connection to the worker, as far as an engine uses it."""

    def next_number(self) -> int:
        """Return a number that no earlier request of this connection has."""
        ...

    def send(self, message: messages.Message) -> None:
        """Send a message now; nothing if the connection is gone.

        Raises ValueError or OverflowError for a value that no message can hold.
        """
        ...


class RemoteEngine:
    """One engine of a worker, from its start to its end. Implements `Engine`.

    The worker's connection calls `receive`, `report`, `ready`, `note` and `end`.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._report: ReportPhase | None = None
        self._phase = ("connected", "")
        self._started: asyncio.Future[ModelInfo] = self._loop.create_future()
        # Answers to calls, and requests that run, by number.
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._running: dict[int, _Run] = {}
        self._stats = EngineStats()
        # Set at the end: the error of later calls, and the cause for `stats`.
        self._error: TokkaError | None = None
        self._death: str | None = None
        # The error of new requests during a drain. Prepared requests still run.
        self._refusal: TokkaError | None = None

    @property
    def is_over(self) -> bool:
        """Whether the engine is gone, so that each call raises."""
        return self._error is not None

    @property
    def has_died(self) -> bool:
        """Whether the engine is gone because it died: a request may have been the cause."""
        return isinstance(self._error, EngineDied)

    # -- Engine

    async def start(self, report: ReportPhase) -> ModelInfo:
        """Return when the worker's engine is ready. The worker starts it by itself."""
        self._report = report
        report(*self._phase)
        # Several may wait for it.
        return await asyncio.shield(self._started)

    async def prepare(self, request: GenerateRequest) -> Prepared:
        if self._refusal is not None and self._error is None:
            raise self._refusal
        number = self._link.next_number()
        answer = await self._call(number, open_of(number, request), request.prompt_param)
        ids = tuple(map(ids_of, answer.prompt_token_ids))
        accepted = Accepted(ids, tuple(answer.allowed_tokens), answer.dimensions)
        return _RemotePrepared(self, number, accepted, len(request.prompts) * request.sampling.n)

    async def tokenize(self, prompt: Prompt, tenant: str) -> Sequence[int]:
        number = self._link.next_number()
        message = messages.Tokenize(number, packed_prompt(prompt), tenant)
        return ids_of((await self._call(number, message, "prompt")).token_ids)

    async def detokenize(self, token_ids: Sequence[int], tenant: str) -> str:
        number = self._link.next_number()
        answer = await self._call(number, messages.Detokenize(number, list(token_ids), tenant), "tokens")
        return "".join(answer.texts)

    async def token_texts(self, token_ids: Sequence[int], tenant: str) -> list[str]:
        number = self._link.next_number()
        answer = await self._call(number, messages.TokenTexts(number, list(token_ids), tenant), "tokens")
        texts: list[str] = answer.texts
        return texts

    async def ping(self) -> None:
        number = self._link.next_number()
        await self._call(number, messages.Probe(number), None)

    def stats(self) -> EngineStats:
        # The worker's own count is older, and includes the requests of other gateways.
        return replace(self._stats, unfinished=len(self._running), death=self._death or self._stats.death)

    async def close(self) -> None:
        """End its requests. The worker goes on: its launcher stops it."""
        for number in (*self._calls, *self._running):
            self._link.send(messages.Abort(number))
        self.end(EngineDied(), "it was closed")

    # -- requests

    async def run(self, number: int, choices: int, sink: Sink) -> Usage:
        """Run a prepared request, as `Prepared.run` says."""
        if self._error is not None:
            raise self._error
        running = self._running[number] = _Run(Delivery(sink, choices), self._loop.create_future())
        self._link.send(messages.Go(number))
        try:
            await running.delivery.run()
            return await running.usage
        finally:
            if self._running.pop(number, None) is not None:
                self._link.send(messages.Abort(number))

    def forget(self, number: int) -> None:
        """Let the worker drop a request that was prepared and will not run. Safe in any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._link.send, messages.Abort(number))

    async def _call(self, number: int, message: messages.Message, param: str | None) -> Any:
        """Send a message and return the worker's answer. `param`: the request's field, for errors."""
        if self._error is not None:
            raise self._error
        answer = self._calls[number] = self._loop.create_future()
        try:
            try:
                self._link.send(message)
            except (ValueError, OverflowError):
                raise InvalidRequest(
                    f"`{param}` holds a value that cannot be passed on: an integer of more than 64 bits, text that is"
                    " not Unicode, or more than 64 MiB.",
                    param=param,
                ) from None
            return await answer
        except asyncio.CancelledError:
            self._link.send(messages.Abort(number))
            raise
        finally:
            self._calls.pop(number, None)

    # -- the connection

    def report(self, phase: str, detail: str) -> None:
        """Note a phase of the start."""
        self._phase = (phase, detail)
        if self._report is not None and not self._started.done():
            self._report(phase, detail)

    def ready(self, info: ModelInfo) -> None:
        if not self._started.done():
            self._started.set_result(info)

    def note(self, stats: EngineStats) -> None:
        self._stats = stats

    def refuse(self, error: TokkaError) -> None:
        """Accept no new requests."""
        self._refusal = error

    def receive(self, message: messages.FromWorker) -> None:
        """Take a message about a request. One about a request that is over is dropped."""
        if isinstance(message, EVENT_MESSAGES):
            if (run := self._running.get(message.request)) is not None:
                run.take(message)
        elif isinstance(message, _ANSWERS):
            if (answer := self._calls.get(message.request)) is not None and not answer.done():
                answer.set_result(message)
        elif isinstance(message, messages.Completed):
            if (run := self._running.pop(message.request, None)) is not None:
                run.complete(message.usage)
        elif isinstance(message, messages.Failed):
            self._fail(message.request, error_of(message.error))

    def end(self, error: TokkaError, death: str) -> None:
        """The engine is gone. Calls and requests end with the error."""
        if self._error is not None:
            return
        self._error, self._death = error, death
        if not self._started.done():
            self._started.set_exception(StartupError(death))
            # Nobody may wait for it.
            self._started.exception()
        for number in (*self._calls, *self._running):
            self._fail(number, error)

    def _fail(self, number: int, error: TokkaError) -> None:
        if (answer := self._calls.get(number)) is not None and not answer.done():
            answer.set_exception(error)
        elif (run := self._running.pop(number, None)) is not None:
            run.fail(error)


class _RemotePrepared:
    """A request that the worker has prepared and keeps. Implements `Prepared`."""

    def __init__(self, engine: RemoteEngine, number: int, accepted: Accepted, choices: int) -> None:
        self._engine = engine
        self._number = number
        self._choices = choices
        self._runs = False
        self.accepted = accepted

    def run(self, sink: Sink) -> Coroutine[Any, Any, Usage]:
        self._runs = True
        # Not a coroutine of its own: it would keep the prompt's tokens while the request runs.
        return self._engine.run(self._number, self._choices, sink)

    def __del__(self) -> None:
        # A prepared request has no end of its own, and the worker holds its prompt.
        if not self._runs:
            self._engine.forget(self._number)


class _Run:
    """A running request: the way to its sink, and its usage."""

    def __init__(self, delivery: Delivery, usage: asyncio.Future[Usage]) -> None:
        self.delivery = delivery
        self.usage = usage

    def take(self, message: EventMessage) -> None:
        """Pass on an event. A fault in Tokka's code for one request must not end the others: it ends this one."""
        try:
            event = event_of(message)
            if type(event) is TextDelta:
                self.delivery.put(event)
            elif isinstance(event, ReasoningDelta | ToolCallDelta | ChoiceDone | Embedding):
                self.delivery.put_read(event)
            else:
                # The prompt's own events may be long.
                self.delivery.put_parts(iter((event,)))
        except Exception as error:
            self.fail(error)

    def complete(self, usage: Usage) -> None:
        if not self.usage.done():
            self.usage.set_result(usage)

    def fail(self, error: Exception) -> None:
        self.delivery.fail(error)
        if not self.usage.done():
            self.usage.set_exception(error)
            # `run` raises the delivery's error, unless every choice has ended.
            self.usage.exception()

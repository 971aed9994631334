"""A dispatcher with all its parts, and a scripted engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.admission.controllers import controller
from tests.supervised import supervisor_of, until_ready
from tokka.admission.allowance import Allowance, Allowances
from tokka.admission.controller import AdmissionController
from tokka.admission.memory import MemoryBudget
from tokka.admission.quarantine import Quarantine
from tokka.core import (
    ANONYMOUS,
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    GenerateRequest,
    Prompt,
    RequestRecord,
    Sampling,
    Spent,
    TextDelta,
    TextPrompt,
    Usage,
)
from tokka.dispatch.catalogue import Catalogue, ServedModel
from tokka.dispatch.dispatcher import Dispatcher
from tokka.engine.base import ReportPhase, Sink
from tokka.engine.supervision.supervisor import Supervisor
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import EngineError

Script = Callable[[GenerateRequest], AsyncGenerator[Event, None]]


ANSWERS = MemoryBudget(1 << 30, "answers")


def allowance() -> Allowance:
    return Allowances(lambda _: Spent()).open(ANONYMOUS, 0.0)


@dataclass
class ScriptedEngine:
    """Runs one script for every request, and counts the running generations.

    A script yields `Accepted` when the request is prepared, and the other events when it runs.
    """

    script: Script
    open_generations: int = 0
    prepared: list[GenerateRequest] = field(default_factory=list)
    death: str | None = None

    async def start(self, report: ReportPhase) -> ModelInfo:
        return ModelInfo(1000, 100, "scripted", "1", has_chat_template=True)

    async def prepare(self, request: GenerateRequest) -> ScriptedRequest:
        events = self.script(request)
        accepted = await anext(events)
        assert isinstance(accepted, Accepted)
        self.prepared.append(request)
        return ScriptedRequest(self, accepted, events)

    async def tokenize(self, prompt: Prompt, tenant: str) -> list[int]:
        return [1]

    async def detokenize(self, token_ids: object, tenant: str) -> str:
        return "x"

    async def token_texts(self, token_ids: Sequence[int], tenant: str) -> list[str]:
        return ["x"] * len(token_ids)

    async def ping(self) -> None:
        return None

    def stats(self) -> EngineStats:
        return EngineStats(death=self.death)

    async def close(self) -> None:
        return None


@dataclass
class ScriptedRequest:
    """A prepared request of a scripted engine."""

    engine: ScriptedEngine
    accepted: Accepted
    events: AsyncGenerator[Event, None]

    async def run(self, sink: Sink) -> Usage:
        self.engine.open_generations += 1
        try:
            async with aclosing(self.events) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        return event.usage
                    await sink.give(event)
        finally:
            self.engine.open_generations -= 1
        raise AssertionError("the script ended without Finished")


async def complete(request: GenerateRequest) -> AsyncGenerator[Event, None]:
    yield Accepted(([1, 2],))
    yield TextDelta(0, "a", (1,))
    yield ChoiceDone(0, "stop")
    yield Finished(Usage(2, 1, 1))


async def endless(request: GenerateRequest) -> AsyncGenerator[Event, None]:
    yield Accepted(([1, 2],))
    while True:
        await asyncio.sleep(0.001)
        yield TextDelta(0, "a", (1,))


async def failing(request: GenerateRequest) -> AsyncGenerator[Event, None]:
    yield Accepted(([1, 2],))
    yield TextDelta(0, "a", (1,))
    raise EngineError("The engine failed on this request.")


@dataclass
class Bench:
    """A dispatcher and its parts. `engines`: all started engines, the current one last."""

    engines: list[ScriptedEngine]
    supervisor: Supervisor
    admission: AdmissionController
    dispatcher: Dispatcher

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines[-1]


@asynccontextmanager
async def bench(
    script: Script, *, ready: bool = True, max_open: int = 8, max_waiting: int = 0, **settings: Any
) -> AsyncIterator[Bench]:
    engines: list[ScriptedEngine] = []

    def create() -> ScriptedEngine:
        engines.append(ScriptedEngine(script))
        return engines[-1]

    supervisor = supervisor_of(create)
    admission = controller(max_open, max_waiting)
    running: asyncio.Task[None] | None = asyncio.create_task(supervisor.run()) if ready else None
    if running:
        await until_ready(supervisor)
    try:
        yield Bench(
            engines,
            supervisor,
            admission,
            Dispatcher(Catalogue([ServedModel(("m",), supervisor, admission, Quarantine(600))]), ANSWERS, **settings),
        )
    finally:
        if running:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def request(n: int = 1, timeout_s: float | None = None) -> GenerateRequest:
    return GenerateRequest("id", "m", (TextPrompt("x"),), Sampling(n=n), timeout_s=timeout_s)


def record() -> RequestRecord:
    return RequestRecord("r", time.monotonic())

"""A dispatcher with all its parts, and a scripted engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
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
from tokka.dispatch.dispatcher import Dispatcher
from tokka.engine.base import ReportPhase
from tokka.engine.supervision.supervisor import Supervisor
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import EngineError

Script = Callable[[GenerateRequest], AsyncGenerator[Event, None]]


ANSWERS = MemoryBudget(1 << 30, "answers")


def allowance() -> Allowance:
    return Allowances(lambda _: Spent()).open(ANONYMOUS, 0.0)


@dataclass
class ScriptedEngine:
    """Runs one script for every request, and counts the open generations."""

    script: Script
    open_generations: int = 0
    death: str | None = None

    async def start(self, report: ReportPhase) -> ModelInfo:
        return ModelInfo(1000, 100, "scripted", "1", has_chat_template=True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.open_generations += 1
        try:
            async with aclosing(self.script(request)) as events:
                async for event in events:
                    yield event
        finally:
            self.open_generations -= 1

    async def tokenize(self, prompt: Prompt, tenant: str) -> list[int]:
        return [1]

    async def detokenize(self, token_ids: object, tenant: str) -> str:
        return "x"

    async def ping(self) -> None:
        return None

    def stats(self) -> EngineStats:
        return EngineStats(death=self.death)

    async def close(self) -> None:
        return None


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
            Dispatcher(supervisor, admission, Quarantine(600), ANSWERS, ["m"], **settings),
        )
    finally:
        if running:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def request(n: int = 1, timeout_s: float | None = None) -> GenerateRequest:
    return GenerateRequest("id", "m", (TextPrompt("x"),), Sampling(n=n), timeout_s=timeout_s)


def record() -> RequestRecord:
    return RequestRecord("r", time.monotonic())

"""A launcher that runs workers in this process, and a controller of it, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tests.fleet.gateways import Gateway, gateway, options_of
from tokka.engine.base import Engine
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.fleet.controller import Controller, Load, Managed
from tokka.fleet.launchers.base import Launched, LaunchFailed
from tokka.fleet.model import FleetModel
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.spec import ModelSpec, Resources
from tokka.fleet.worker import Worker
from tokka.protocol.worker.handshake import Hello

DEFAULT = ModelSpec("fake", (), "fake", {}, "1", max_replicas=4, idle_after_s=60)


@dataclass
class Started:
    spec: ModelSpec
    worker: Worker
    task: asyncio.Task[None]


@dataclass
class HereLauncher:
    """Implements `Launcher`."""

    gateway: Gateway
    create_engine: Callable[[], Engine] = lambda: FakeEngine(FakeOptions())
    capacity: Resources | None = None
    # Why no worker can be started; None: they can.
    fault: str | None = None
    workers: dict[str, Started] = field(default_factory=dict)
    stopped: list[tuple[str, bool]] = field(default_factory=list)

    async def start(self, spec: ModelSpec, worker: str) -> None:
        if self.fault is not None:
            raise LaunchFailed(self.fault)
        made = Worker(options_of(self.gateway, worker=worker, model=spec.name), self.create_engine)
        self.workers[worker] = Started(spec, made, asyncio.create_task(made.run()))

    async def list(self) -> Sequence[Launched]:
        every = [self._launched(name, one) for name, one in self.workers.items()]
        for launched in every:
            if launched.ended is not None:
                del self.workers[launched.worker]
        return every

    def _launched(self, name: str, one: Started) -> Launched:
        ended = None
        if one.task.done():
            error = None if one.task.cancelled() else one.task.exception()
            ended = f"ended: {error}" if error else "ended with exit code 0"
        spec = one.spec
        return Launched(name, spec.name, spec.revision, spec.resources, 0.0, "here", ended=ended)

    async def stop(self, worker: str, *, kill: bool = False) -> None:
        self.stopped.append((worker, kill))
        if (one := self.workers.get(worker)) is not None:
            if kill:
                one.task.cancel()
            else:
                one.worker.drain()

    async def close(self) -> None:
        for one in self.workers.values():
            one.task.cancel()
        await asyncio.gather(*(one.task for one in self.workers.values()), return_exceptions=True)


@dataclass
class Controlled:
    """A controller of one model, `fake`, with its launcher."""

    controller: Controller
    launcher: HereLauncher
    model: FleetModel
    gateway: Gateway
    load: Load = field(default_factory=lambda: Load(0, 0.0))
    starts: list[tuple[str, str]] = field(default_factory=list)

    async def look(self) -> None:
        """Let the controller look and act once."""
        await self.controller._look()
        await self.controller._act()

    async def until(self, fact: Callable[[], bool], within_s: float = 10) -> None:
        """Let the controller look and act until the fact is true."""
        async with asyncio.timeout(within_s):
            while not fact():
                await asyncio.sleep(0.01)
                await self.look()

    async def ready(self, count: int) -> None:
        await self.until(lambda: self.states() == ["ready"] * count)

    def states(self) -> list[str]:
        return sorted(self.controller._replica(one).state for one in self.controller.workers.values())


@asynccontextmanager
async def controlled(folder: Path, spec: ModelSpec = DEFAULT, **changes: Any) -> AsyncIterator[Controlled]:
    """Yield a controller that looks when the test says so. `changes`: of the spec."""
    spec = replace(spec, **changes)

    def accepts(hello: Hello) -> str | None:
        return None if hello.model == spec.name else f"no model {hello.model}"

    async with gateway(folder, accepts=accepts) as opened:
        launcher = HereLauncher(opened)
        model = FleetModel(spec, lambda: None)
        starts: list[tuple[str, str]] = []

        def on_start(name: str, outcome: Literal["ready", "failed"]) -> None:
            starts.append((name, outcome))

        managed = Managed(model, lambda: made.load)
        controller = Controller({spec.name: managed}, {"local": launcher}, on_start, drain_timeout_s=5, target_wait_s=1)
        made = Controlled(controller, launcher, model, opened, starts=starts)
        on_change = opened.listener._on_change

        def take(worker: RemoteWorker) -> None:
            model.take(worker)
            on_change(worker)

        opened.listener._on_change = take
        try:
            yield made
        finally:
            await launcher.close()

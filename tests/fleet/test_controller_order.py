"""The order of the controller's actions and its memory of starts, with a launcher that starts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.engine.contract import ask
from tests.fleet.gateways import gateway, until, worker
from tests.fleet.simulated_fleet import GPU, spec
from tokka.errors import ModelStarting
from tokka.fleet.controller import Controller, Load, Managed
from tokka.fleet.launchers.base import Launched, LaunchFailed
from tokka.fleet.model import FleetModel
from tokka.fleet.spec import Resources


class Starting:
    """A launcher of workers that never join. `at_start` is called with each start."""

    def __init__(self, gpus: int = 2) -> None:
        self.capacity = Resources(gpus)
        self.listed: dict[str, Launched] = {}
        self.started: list[str] = []
        self.at_start: Callable[[], None] = lambda: None
        # Stops wait for it.
        self.stops = asyncio.Event()
        self.stops.set()

    def know(self, worker: str, model: str, ended: str | None = None) -> None:
        self.listed[worker] = Launched(worker, model, "1", GPU, 0.0, "here", ended=ended)

    async def start(self, spec: object, worker: str) -> None:
        self.at_start()
        self.started.append(worker)
        self.know(worker, spec.name)  # type: ignore[attr-defined]

    async def list(self) -> list[Launched]:
        return list(self.listed.values())

    async def stop(self, worker: str, *, kill: bool = False) -> None:
        await self.stops.wait()
        self.listed.pop(worker, None)

    async def close(self) -> None:
        pass


def model(name: str, fixed: int | None) -> Managed:
    return Managed(FleetModel(spec(name), lambda: None), lambda: Load(0, 0.0), fixed)


def controller(launcher: Starting, *models: Managed) -> Controller:
    named = {one.replicas.spec.name: one for one in models}
    return Controller(named, {"local": launcher}, lambda *_: None, drain_timeout_s=30, target_wait_s=1)


async def turn(one: Controller) -> None:
    await one._look()
    await one._act()


async def test_replica_that_stops_gets_no_request_during_a_start(tmp_path: Path) -> None:
    launcher, starts, stops = Starting(), model("a", 1), model("fake", 0)
    launcher.know("w1", "fake")
    seen: list[str] = []

    def ask_again() -> None:
        with pytest.raises(ModelStarting):
            stops.replicas.lease(ask())
        seen.append("refused")

    launcher.at_start = ask_again
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(gateway(tmp_path))
        await stack.enter_async_context(worker(opened))
        stops.replicas.take(await opened.ready())
        await turn(controller(launcher, starts, stops))
    assert seen == ["refused"]


@pytest.mark.parametrize("fails", ["launch", "worker"])
async def test_failed_start_is_not_taken_for_one_that_goes_on(fails: str) -> None:
    launcher, managed = Starting(), model("a", 1)

    def fail() -> None:
        if fails == "launch":
            raise LaunchFailed("no room")

    launcher.at_start = fail
    control = controller(launcher, managed)
    await turn(control)
    if fails == "worker":
        assert managed.replicas.start_began_s is not None
        launcher.know(launcher.started[0], "a", ended="ended with exit code 1")
        await control._look()
    # Otherwise Retry-After would count down to 1 s, although the next start has not begun.
    assert managed.replicas.start_began_s is None


async def test_worker_of_a_removed_model_keeps_its_resources() -> None:
    launcher, managed = Starting(gpus=1), model("a", 1)
    launcher.know("old", "removed")
    control = controller(launcher, managed)
    await turn(control)
    assert launcher.started == []
    launcher.know("old", "removed", ended="stopped")
    await turn(control)
    assert len(launcher.started) == 1
    assert managed.failure == ""


async def test_stop_ends_a_worker_whose_drain_was_broken_off() -> None:
    launcher, managed = Starting(), model("a", 0)
    launcher.know("w1", "a")
    launcher.stops.clear()
    control = controller(launcher, managed)
    running = asyncio.create_task(control.run())
    await until(lambda: any(one.drains_s is not None for one in control.workers.values()))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    launcher.stops.set()
    async with asyncio.timeout(2):
        await control.stop()

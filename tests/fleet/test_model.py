"""The replicas of one model of a fleet: leases, prefixes, sums, deaths, and requests that move to another replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.admission.controllers import controller
from tests.dispatch.bench import ANSWERS, allowance, record
from tests.events import events_of
from tests.fleet.gateways import Gateway, gateway, until, worker
from tokka.admission.quarantine import Quarantine
from tokka.core import ChoiceDone, Event, Finished, GenerateRequest, Sampling, TextDelta, TextPrompt
from tokka.dispatch.catalogue import Catalogue, ServedModel
from tokka.dispatch.dispatcher import Dispatcher
from tokka.dispatch.generation import Generation
from tokka.engine.base import Engine, ReportPhase
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.engine_facts import ModelInfo
from tokka.errors import EngineDied, EngineLost, ModelStarting, WorkerDied
from tokka.fleet.model import FleetModel
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.spec import ModelSpec
from tokka.fleet.worker import Worker

LONG = "".join(f"Sentence {number} of a document. " for number in range(100))


class Caching(FakeEngine):
    """An engine with a prefix cache, as far as the gateway knows."""

    async def start(self, report: ReportPhase) -> ModelInfo:
        return replace(await super().start(report), caches_prefixes=True, kv_tokens=100_000)


def request(prompt: str = "Hi", tokens: int = 4, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(
        "id", "fake", (TextPrompt(prompt),), Sampling(max_tokens=tokens, ignore_eos=True, **sampling)
    )


@dataclass
class Running:
    """A model with workers in this process."""

    model: FleetModel
    gateway: Gateway
    workers: dict[str, Worker]
    dispatcher: Dispatcher

    async def ready(self, count: int) -> None:
        await until(lambda: len(self.model._open()) == count)

    async def open(self, **given: Any) -> tuple[Generation, asyncio.Task[list[Event]]]:
        """Begin a request; return when its replica works on it, or has completed it."""
        generation = await self.dispatcher.open(request(**given), record(), allowance())
        task = asyncio.create_task(events_of(generation))
        await until(lambda: task.done() or self.engine_of(generation).stats().unfinished > 0)
        return generation, task

    def engine_of(self, generation: Generation) -> Engine:
        return generation.holdings.lease.replica.engine

    def replica_of(self, generation: Generation) -> str:
        """Return the id of the worker that a request holds."""
        replica = generation.holdings.lease.replica
        return next(name for name, member in self.model.members.items() if member.replica is replica)

    def lose(self, name: str) -> None:
        """Cut the connection of a worker as a vanished host does."""
        self.gateway.listener.workers[name].connection.abort("the host has vanished")


@asynccontextmanager
async def running(folder: Path, *names: str, **options: Any) -> AsyncIterator[Running]:
    """Run a model with a worker of each name."""
    model = FleetModel(ModelSpec("fake", (), "fake", {}, "1", max_replicas=8), lambda: None)
    served = ServedModel(("fake",), model, controller(64, 64), Quarantine(600))
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(gateway(folder))
        on_change = opened.listener._on_change

        def take(remote: RemoteWorker) -> None:
            model.take(remote)
            on_change(remote)

        opened.listener._on_change = take
        dispatcher = Dispatcher(Catalogue([served], probes_all=True), ANSWERS)
        made = Running(model, opened, {}, dispatcher)
        for name in names:
            one = worker(opened, create_engine=lambda: Caching(FakeOptions(**options)), worker=name)
            made.workers[name] = await stack.enter_async_context(one)
        await made.ready(len(names))
        yield made


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_requests_spread_over_the_replicas(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", step_s=0.02) as fleet:
        opened = [await fleet.open(tokens=20) for _ in range(4)]
        assert sorted(fleet.replica_of(generation) for generation, _ in opened) == ["a", "a", "b", "b"]
        await asyncio.gather(*(task for _, task in opened))
        for generation, _ in opened:
            await generation.aclose()
        assert fleet.model.leases == 0


async def test_second_turn_goes_to_the_replica_of_the_first(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b") as fleet:
        places = {}
        for name in ("one", "two", "three", "four"):
            generation, task = await fleet.open(prompt=f"{name} {LONG}")
            places[name] = fleet.replica_of(generation)
            await task
            # The lease is held meanwhile, so that the next conversation goes elsewhere.
            if name in ("two", "four"):
                await generation.aclose()
        assert set(places.values()) == {"a", "b"}
        for name, place in places.items():
            generation, task = await fleet.open(prompt=f"{name} {LONG} And then?")
            assert fleet.replica_of(generation) == place
            await task
            await generation.aclose()


async def test_capacity_is_the_sum_of_the_replicas(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", max_running=8) as fleet:
        info = fleet.model.info
        assert info is not None
        assert (info.max_running, info.kv_tokens, info.copies) == (16, 200_000, 2)
        fleet.model.leave("a")
        assert fleet.model.info is not None
        assert fleet.model.info.max_running == 8


async def test_model_without_a_replica_tells_when_to_come_back(tmp_path: Path) -> None:
    async with running(tmp_path) as fleet:
        assert fleet.model.missed_s is None
        with pytest.raises(ModelStarting) as refused:
            await fleet.open()
        assert refused.value.retry_after_s == 20
        assert fleet.model.missed_s is not None


async def test_leaving_worker_gets_no_request_and_finishes_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", step_s=0.02) as fleet:
        generation, task = await fleet.open(tokens=10)
        place = fleet.replica_of(generation)
        fleet.model.leave(place)
        others = [await fleet.open() for _ in range(3)]
        assert place not in {fleet.replica_of(other) for other, _ in others}
        assert isinstance((await task)[-1], Finished)
        await asyncio.gather(*(one for _, one in others))


async def test_held_back_worker_gets_requests_again(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as fleet:
        fleet.model.set_state("ready")
        fleet.model.hold_back({"a"})
        assert fleet.model.progress().state == "draining"
        assert fleet.dispatcher.hold("fake", record(), 100, 1) is not None
        with pytest.raises(ModelStarting):
            await fleet.open()
        fleet.model.hold_back(set())
        _, task = await fleet.open()
        assert await task


@pytest.mark.parametrize("tokens", [1, 6])
async def test_lost_request_without_a_token_runs_elsewhere(tmp_path: Path, tokens: int) -> None:
    # The first step takes long enough that no token comes before the loss.
    async with running(tmp_path, "a", "b", step_s=0.3) as fleet:
        generation, task = await fleet.open(tokens=tokens)
        place = fleet.replica_of(generation)
        fleet.lose(place)
        events = await task
        assert sum(isinstance(event, ChoiceDone) for event in events) == 1
        assert fleet.replica_of(generation) != place
        assert generation.record.completion_tokens == tokens
        await generation.aclose()
        assert fleet.model.leases == 0


async def test_lost_request_of_the_only_replica_ends_with_its_error(tmp_path: Path) -> None:
    async with running(tmp_path, "a", step_s=0.3) as fleet:
        generation, task = await fleet.open()
        fleet.lose("a")
        with pytest.raises(EngineLost):
            await task
        await generation.aclose()


async def test_model_is_not_ready_as_soon_as_its_last_replica_is_gone(tmp_path: Path) -> None:
    async with running(tmp_path, "a") as fleet:
        fleet.model.set_state("ready")
        fleet.lose("a")
        await fleet.ready(0)
        assert fleet.model.progress().state == "starting"


def _died(fleet: Running, name: str, error: EngineDied) -> None:
    """End a worker's engine with this error, and let its worker vanish."""
    remote = fleet.gateway.listener.workers[name]
    remote.engine.end(error, "killed")
    fleet.lose(name)


async def test_numbers_grow_with_deaths_and_not_with_losses(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", "c") as fleet:
        c = fleet.model.members["c"].replica
        assert c is not None
        fleet.lose("a")
        await until(lambda: "a" not in fleet.model.members)
        _died(fleet, "b", EngineDied())
        await until(lambda: c.number == 2)
        assert fleet.model.number == 2


@pytest.mark.parametrize(
    ("workers", "error", "moves"),
    [
        # The request may be the cause: it must not kill the last replica.
        ("ab", EngineDied, False),
        ("abc", EngineDied, True),
        # The whole process of a worker is rarely killed by a request.
        ("ab", WorkerDied, True),
    ],
)
async def test_request_of_a_dead_engine_never_runs_on_the_last(
    tmp_path: Path, workers: str, error: type[EngineDied], moves: bool
) -> None:
    async with running(tmp_path, *workers, step_s=0.3) as fleet:
        generation, task = await fleet.open()
        _died(fleet, fleet.replica_of(generation), error())
        if moves:
            assert isinstance((await task)[-1], Finished)
        else:
            with pytest.raises(EngineDied):
                await task
        await generation.aclose()


async def test_request_moves_once_after_deaths(tmp_path: Path) -> None:
    async with running(tmp_path, "a", "b", "c", "d", step_s=0.3) as fleet:
        generation, task = await fleet.open()
        first = fleet.replica_of(generation)
        lease = generation.holdings.lease
        _died(fleet, first, WorkerDied())
        await until(
            lambda: generation.holdings.lease is not lease and fleet.engine_of(generation).stats().unfinished == 1
        )
        _died(fleet, fleet.replica_of(generation), WorkerDied())
        with pytest.raises(WorkerDied):
            await task
        await generation.aclose()


@pytest.mark.parametrize("stop", [None, "."])
async def test_lost_stream_goes_on_elsewhere_if_it_can(tmp_path: Path, stop: str | None) -> None:
    async with running(tmp_path, "a", "b", step_s=0.02) as fleet:
        whole, task = await fleet.open(tokens=30, temperature=0.0)
        expected = text_of(await task)
        await whole.aclose()
        stops = {"stop": (stop,)} if stop else {}
        generation, task = await fleet.open(tokens=30, temperature=0.0, **stops)
        await until(lambda: generation.slot._ticket.tokens >= 5)
        fleet.lose(fleet.replica_of(generation))
        if stop:
            # The text may end with a part of the stop string, which the other replica would not know.
            with pytest.raises(EngineLost):
                await task
        else:
            events = await task
            assert text_of(events) == expected
            assert sum(isinstance(event, ChoiceDone) for event in events) == 1
            assert generation.record.completion_tokens == 30
        await generation.aclose()
        assert fleet.model.leases == 0

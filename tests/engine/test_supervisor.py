"""The one engine: its states, its phases for those who wait, and what happens when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

import tokka.engine.supervisor
from tokka.core import EngineStats, ModelInfo
from tokka.engine.base import ReportPhase
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.engine.supervisor import TRANSITIONS, Progress, State, Supervisor
from tokka.errors import EngineError, ModelStarting, StartupError


class SteeredEngine(FakeEngine):
    """An engine that starts when told to, and dies when told to."""

    def __init__(self) -> None:
        super().__init__(FakeOptions())
        self.may_start = asyncio.Event()
        self.report: ReportPhase | None = None
        self.failure: Exception | None = None
        self.cause_of_death: str | None = None
        self.closed = 0

    async def start(self, report: ReportPhase) -> ModelInfo:
        self.report = report
        await self.may_start.wait()
        if self.failure:
            raise self.failure
        return await super().start(lambda _phase, _detail: None)

    def death(self) -> str | None:
        return self.cause_of_death

    def stats(self) -> EngineStats:
        return EngineStats(running=7)

    async def close(self) -> None:
        self.closed += 1


class Watched:
    """A supervisor with its engine, and the states it went through."""

    def __init__(self) -> None:
        self.engine = SteeredEngine()
        self.states: list[State] = []
        self.supervisor = Supervisor(self.engine, self.states.append)

    async def until(self, fact: Callable[[Progress], bool]) -> Progress:
        async with asyncio.timeout(5):
            async for progress in self.supervisor.changes():
                if fact(progress):
                    return progress
        raise AssertionError("the changes ended first")

    @asynccontextmanager
    async def started(self) -> AsyncIterator[asyncio.Task[str]]:
        """Run the supervisor until its engine's start has been called."""
        task = asyncio.create_task(self.supervisor.run())
        try:
            await self.until(lambda _: self.engine.report is not None)
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[asyncio.Task[str]]:
        self.engine.may_start.set()
        async with self.started() as task:
            await self.until(lambda progress: progress.state == "ready")
            yield task


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(tokka.engine.supervisor, "_DEATH_POLL_S", 0.0)
    return Watched()


async def test_before_its_start_the_engine_is_refused(watched: Watched) -> None:
    with pytest.raises(ModelStarting) as refusal:
        watched.supervisor.engine()
    assert refusal.value.headers()["retry-after"] == "5"
    assert watched.supervisor.progress().state == "stopped"


async def test_while_it_loads_the_engine_is_refused_by_its_phase(watched: Watched) -> None:
    async with watched.started():
        assert watched.engine.report is not None
        watched.engine.report("loading weights", "1 of 2")
        await watched.until(lambda progress: progress.phase == "loading weights")
        with pytest.raises(ModelStarting, match="loading weights"):
            watched.supervisor.engine()


async def test_a_ready_engine_is_handed_out(watched: Watched) -> None:
    async with watched.ready():
        assert watched.supervisor.engine() is watched.engine
        assert watched.supervisor.was_ready


async def test_model_info_is_known_once_the_engine_is_ready(watched: Watched) -> None:
    assert watched.supervisor.info is None
    async with watched.ready():
        assert watched.supervisor.info is not None
        assert watched.supervisor.info.engine == "fake"


async def test_a_phase_reported_from_another_thread_arrives(watched: Watched) -> None:
    async with watched.started():
        assert watched.engine.report is not None
        await asyncio.to_thread(watched.engine.report, "warming up", "on its own thread")
        progress = await watched.until(lambda progress: progress.phase == "warming up")
        assert (progress.state, progress.detail) == ("starting", "on its own thread")


async def test_changes_begin_with_what_is_and_end_when_ready(watched: Watched) -> None:
    seen: list[State] = []

    async def watch() -> None:
        async for progress in watched.supervisor.changes():
            seen.append(progress.state)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    assert seen == ["stopped"]
    async with watched.ready():
        await asyncio.wait_for(watching, 5)
    assert seen[-1] == "ready"


async def test_changes_of_a_ready_engine_are_one(watched: Watched) -> None:
    async with watched.ready():
        assert [progress.state async for progress in watched.supervisor.changes()] == ["ready"]


async def test_two_watchers_both_see_the_end(watched: Watched) -> None:
    async def last() -> State:
        return [progress.state async for progress in watched.supervisor.changes()][-1]

    watching = [asyncio.create_task(last()) for _ in range(2)]
    async with watched.ready():
        assert await asyncio.wait_for(asyncio.gather(*watching), 5) == ["ready", "ready"]


async def test_a_failed_start_names_no_file_to_the_probes(watched: Watched) -> None:
    watched.engine.failure = StartupError("no such folder")
    watched.engine.may_start.set()
    with pytest.raises(StartupError, match="no such folder"):
        await watched.supervisor.run()
    progress = watched.supervisor.progress()
    assert (progress.state, progress.detail) == ("failed", "the engine could not be started")
    assert not watched.supervisor.was_ready


async def test_a_failed_start_ends_the_changes(watched: Watched) -> None:
    watched.engine.failure = StartupError("no such folder")
    async with watched.started():
        watched.engine.may_start.set()
        assert (await watched.until(lambda progress: progress.state == "failed")).phase == "failed"


async def test_an_engine_that_dies_is_noticed_and_refused(watched: Watched) -> None:
    async with watched.ready() as running:
        watched.engine.cause_of_death = "killed by signal 9"
        assert await asyncio.wait_for(running, 5) == "killed by signal 9"
    assert watched.supervisor.progress().state == "failed"
    with pytest.raises(ModelStarting):
        watched.supervisor.engine()
    # It was ready once, and that stays true.
    assert watched.supervisor.was_ready


async def test_states_are_reported_in_their_order(watched: Watched) -> None:
    async with watched.ready() as running:
        watched.engine.cause_of_death = "gone"
        await asyncio.wait_for(running, 5)
    await watched.supervisor.close()
    assert watched.states == ["starting", "ready", "failed", "stopped"]


async def test_stats_of_an_engine_that_is_not_ready_are_zero(watched: Watched) -> None:
    assert watched.supervisor.stats() == EngineStats()
    async with watched.ready():
        assert watched.supervisor.stats().running == 7


async def test_close_stops_an_engine_that_still_loads(watched: Watched) -> None:
    async with watched.started():
        await watched.supervisor.close()
    assert (watched.engine.closed, watched.supervisor.progress().state) == (1, "stopped")


async def test_close_before_start_moves_nothing(watched: Watched) -> None:
    await watched.supervisor.close()
    assert watched.states == []


async def test_a_second_start_is_a_fault_of_ours(watched: Watched) -> None:
    async with watched.started():
        with pytest.raises(RuntimeError, match="from starting to starting"):
            await watched.supervisor.run()


async def test_elapsed_time_does_not_go_back(watched: Watched) -> None:
    async with watched.started():
        first = watched.supervisor.progress().elapsed_s
        assert 0 <= first <= watched.supervisor.progress().elapsed_s


def test_every_state_can_be_reached_and_left() -> None:
    reachable = {state for states in TRANSITIONS.values() for state in states}
    assert reachable == set(TRANSITIONS)
    assert all(TRANSITIONS.values())


async def test_an_unexpected_fault_at_start_is_a_failure_too(watched: Watched) -> None:
    watched.engine.failure = EngineError("a bug of the engine")
    watched.engine.may_start.set()
    with pytest.raises(StartupError):
        await watched.supervisor.run()
    assert watched.supervisor.progress().state == "failed"

"""The supervisor: the engine's states and phases, its deaths, and the restart after each."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

import tokka.engine.supervision.supervisor
from tests.supervised import supervisor_of, until
from tokka.engine.base import ReportPhase
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.engine.replicas import Progress
from tokka.engine.supervision.restart import RestartPolicy
from tokka.engine.supervision.supervisor import TRANSITIONS, State
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import EngineError, ModelStarting, StartupError


class SteeredEngine(FakeEngine):
    """An engine that starts, dies or freezes when the test says so."""

    def __init__(self) -> None:
        super().__init__(FakeOptions())
        self.was_started = asyncio.Event()
        self.may_start = asyncio.Event()
        self.report: ReportPhase | None = None
        self.failure: Exception | None = None
        self.cause_of_death: str | None = None
        self.answers = True
        self.unfinished = 0
        self.pids: tuple[int, ...] = ()
        self.closed = 0

    async def start(self, report: ReportPhase) -> ModelInfo:
        self.report = report
        self.was_started.set()
        await self.may_start.wait()
        if self.failure:
            raise self.failure
        return await super().start(lambda _phase, _detail: None)

    async def ping(self) -> None:
        if not self.answers:
            await asyncio.Event().wait()

    def stats(self) -> EngineStats:
        return EngineStats(running=7, unfinished=self.unfinished, death=self.cause_of_death, pids=self.pids)

    async def close(self) -> None:
        self.closed += 1


class Watched:
    """A supervisor, its engines, and the states and restarts that it reported."""

    def __init__(self, **changes: Any) -> None:
        self.engines: list[SteeredEngine] = []
        self.next = SteeredEngine()
        self.states: list[State] = []
        self.restarts: list[str] = []
        self.supervisor = supervisor_of(
            self._create, on_state=self.states.append, on_restart=self.restarts.append, **changes
        )

    def _create(self) -> SteeredEngine:
        self.engines.append(self.next)
        self.next = SteeredEngine()
        return self.engines[-1]

    @property
    def engine(self) -> SteeredEngine:
        return self.engines[-1] if self.engines else self.next

    async def until(self, fact: Callable[[Progress], bool]) -> Progress:
        return await until(self.supervisor, fact)

    async def until_state(self, state: State) -> None:
        await self.until(lambda progress: progress.state == state)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[asyncio.Task[None]]:
        """Run the supervisor until its engine's start has been called."""
        engine = self.engine
        task: asyncio.Task[None] = asyncio.create_task(self.supervisor.run())
        try:
            await asyncio.wait_for(engine.was_started.wait(), 5)
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[asyncio.Task[None]]:
        self.engine.may_start.set()
        async with self.started() as task:
            await self.until_state("ready")
            yield task


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
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
        assert watched.supervisor.progress().retry_after_s == 0


async def test_log_names_the_processes_of_a_ready_engine(watched: Watched) -> None:
    watched.next.pids = (os.getpid(),)
    with capture_logs() as lines:
        async with watched.ready():
            pass
    named = {line["phase"]: line["pids"] for line in lines if "pids" in line}
    assert named == {"ready": (os.getpid(),)}


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


async def test_two_watchers_both_see_each_change(watched: Watched) -> None:
    async def states() -> list[str]:
        seen: list[str] = []
        async for progress in watched.supervisor.changes():
            seen.append(progress.state)
            if progress.state == "ready":
                return seen
        raise AssertionError

    watching = [asyncio.create_task(states()) for _ in range(2)]
    await asyncio.sleep(0)
    async with watched.ready():
        first, second = await asyncio.wait_for(asyncio.gather(*watching), 5)
    assert first == second
    assert (first[0], first[-1]) == ("stopped", "ready")


async def test_changes_repeat_a_long_phase(watched: Watched) -> None:
    async with watched.started():
        assert watched.engine.report is not None
        watched.engine.report("loading weights", "of a large model")
        told = watched.supervisor.changes(every_s=0.01)
        seen = [await asyncio.wait_for(anext(told), 5) for _ in range(3)]
        assert [progress.detail for progress in seen] == ["of a large model"] * 3


async def test_failed_first_start_ends_the_run_and_hides_paths_from_probes(watched: Watched) -> None:
    watched.engine.failure = StartupError("no such folder")
    watched.engine.may_start.set()
    with pytest.raises(StartupError, match="no such folder"):
        await watched.supervisor.run()
    progress = watched.supervisor.progress()
    assert (progress.state, progress.detail) == ("failed", "the engine could not be started")
    assert not watched.supervisor.was_ready
    assert len(watched.engines) == 1


async def test_an_unexpected_fault_at_start_is_a_failure_too(watched: Watched) -> None:
    watched.engine.failure = EngineError("a bug of the engine")
    watched.engine.may_start.set()
    with pytest.raises(StartupError, match="a bug of the engine"):
        await watched.supervisor.run()
    assert watched.supervisor.progress().state == "failed"


async def test_an_engine_that_dies_is_closed_and_a_new_one_takes_over(watched: Watched) -> None:
    async with watched.ready():
        watched.next.may_start.set()
        dead = watched.engine
        dead.cause_of_death = "killed by signal 9"
        await watched.until(lambda progress: progress.state == "ready" and watched.engine is not dead)
        assert watched.supervisor.engine() is watched.engine
        assert (dead.closed, watched.engine.closed) == (1, 0)
        assert watched.supervisor.number == 2
    assert watched.states == ["starting", "ready", "failed", "starting", "ready"]
    assert watched.restarts == ["died"]


class Patient(RestartPolicy):
    """A policy that restarts a dead engine after an hour."""

    def delay_s(self, served_s: float) -> float:
        return 3600.0


async def test_time_served_ends_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
    watched = Watched(policy=Patient(5))
    assert watched.supervisor.served_s == 0
    async with watched.ready():
        assert 0 < watched.supervisor.served_s < watched.supervisor.served_s
        watched.engine.cause_of_death = "killed"
        await watched.until(lambda _: watched.states[-1] == "failed")
        assert 0 < watched.supervisor.served_s == watched.supervisor.served_s


async def test_probes_and_requests_see_a_death_before_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 3600)
    watched = Watched()
    async with watched.ready():
        watched.engine.cause_of_death = "killed by signal 9"
        assert watched.supervisor.progress().state == "failed"
        with pytest.raises(ModelStarting):
            watched.supervisor.engine()
        # `was_ready` stays true after a death.
        assert watched.supervisor.was_ready


async def test_retry_after_is_the_last_start_duration_during_a_restart(watched: Watched) -> None:
    async with watched.ready():
        watched.engine.cause_of_death = "gone"
        await watched.until(lambda _: len(watched.engines) == 2)
        with pytest.raises(ModelStarting) as refusal:
            watched.supervisor.engine()
    # The scripted engine starts at once.
    assert refusal.value.headers()["retry-after"] == "1"


async def test_a_frozen_engine_with_work_to_do_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
    watched = Watched(stall_timeout_s=0.05)
    async with watched.ready():
        watched.engine.unfinished = 1
        await watched.until(lambda _: len(watched.engines) == 2)
        assert watched.engines[0].closed == 1
    assert watched.restarts == ["stalled"]


async def test_an_idle_engine_that_answers_no_call_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_PING_EVERY_S", 0.0)
    watched = Watched(stall_timeout_s=0.05)
    async with watched.ready():
        watched.engine.answers = False
        await watched.until(lambda _: len(watched.engines) == 2)
    assert watched.restarts == ["unresponsive"]


async def test_start_fails_when_the_engine_freezes_in_its_first_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
    watched = Watched(stall_timeout_s=0.05)
    watched.engine.unfinished = 1
    with pytest.raises(StartupError, match="no step"):
        await asyncio.wait_for(watched.supervisor.run(), 5)


async def test_after_too_many_quick_deaths_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
    watched = Watched(policy=RestartPolicy(2))
    async with watched.ready() as running:
        watched.next.may_start.set()
        watched.next.cause_of_death = "killed again"
        watched.engine.cause_of_death = "killed"
        with pytest.raises(StartupError, match=r"died 2x in a row.*killed again"):
            await asyncio.wait_for(running, 5)
    assert watched.supervisor.progress().state == "failed"
    assert [engine.closed for engine in watched.engines] == [1, 1]
    assert watched.restarts == ["died"]


async def test_a_rebuild_that_fails_counts_as_a_death_and_is_tried_again(watched: Watched) -> None:
    async with watched.ready():
        watched.next.failure = StartupError("no memory")
        watched.next.may_start.set()
        watched.engine.cause_of_death = "killed"
        await watched.until(lambda _: watched.restarts == ["died", "start_failed"])


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


async def test_an_engine_is_closed_once_however_many_ask(watched: Watched) -> None:
    async with watched.ready() as running:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await asyncio.gather(watched.supervisor.close(), watched.supervisor.close())
    assert watched.engine.closed == 1


def test_every_state_can_be_reached_and_left() -> None:
    reachable = {state for states in TRANSITIONS.values() for state in states}
    assert reachable == set(TRANSITIONS)
    assert all(TRANSITIONS.values())

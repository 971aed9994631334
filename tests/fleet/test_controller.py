"""The controller: starts, drains and kills workers as the plan and the operator want, and knows why they ended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

import tokka.fleet.controller
from tests.fleet.gateways import worker
from tests.fleet.here import DEFAULT, controlled
from tokka.core import GenerateRequest, Sampling, TextPrompt
from tokka.errors import InvalidRequest, ModelStarting
from tokka.fleet.controller import Controller, Load

ASKED = GenerateRequest("id", "fake", (TextPrompt("Hi"),), Sampling(max_tokens=4))


async def test_minimum_is_started_and_kept(tmp_path: Path) -> None:
    async with controlled(tmp_path, min_replicas=2) as fleet:
        await fleet.ready(2)
        await fleet.look()
        assert fleet.starts == [("fake", "ready")] * 2
        assert fleet.model.start_took_s is not None
        first = next(iter(fleet.launcher.workers.values()))
        first.task.cancel()
        await fleet.until(lambda: first not in fleet.launcher.workers.values())
        # It ended soon after its start, so the next one waits.
        assert fleet.controller.models["fake"].history.backoff.failures == 1
        await fleet.ready(2)


async def test_request_for_a_sleeping_model_starts_it(tmp_path: Path) -> None:
    async with controlled(tmp_path) as fleet:
        await fleet.look()
        assert (fleet.states(), fleet.model.progress().state) == ([], "asleep")
        with pytest.raises(ModelStarting):
            fleet.model.lease(ASKED)
        await fleet.look()
        assert fleet.model.progress().state == "starting"
        await fleet.ready(1)
        assert fleet.model.lease(ASKED).replica.info.engine == "fake"


async def test_launch_that_fails_is_told_and_tried_later(tmp_path: Path) -> None:
    async with controlled(tmp_path, min_replicas=1) as fleet:
        fleet.launcher.fault = "no GPU is free"
        await fleet.look()
        managed = fleet.controller.models["fake"]
        assert (managed.failure, fleet.starts) == ("no GPU is free", [("fake", "failed")])
        assert fleet.model.progress().state == "failed"
        await fleet.look()
        assert fleet.starts == [("fake", "failed")]
        fleet.launcher.fault = None
        await fleet.ready(1)
        assert fleet.model.progress().state == "ready"


async def test_scale_fixes_the_number_until_it_is_lifted(tmp_path: Path) -> None:
    async with controlled(tmp_path, min_replicas=1) as fleet:
        await fleet.ready(1)
        fleet.controller.scale("fake", 3)
        await fleet.ready(3)
        fleet.controller.scale("fake", 0)
        await fleet.until(lambda: not fleet.controller.workers)
        with pytest.raises(ModelStarting, match="stopped by the operator"):
            fleet.model.lease(ASKED)
        await fleet.look()
        assert not fleet.controller.workers
        assert fleet.controller.fixed() == {"fake": 0}
        fleet.controller.scale("fake", None)
        await fleet.ready(1)
        with pytest.raises(InvalidRequest, match="The maximum of `fake` is 4"):
            fleet.controller.scale("fake", 5)


async def test_drained_worker_is_replaced(tmp_path: Path) -> None:
    async with controlled(tmp_path, min_replicas=1) as fleet:
        await fleet.ready(1)
        (name,) = fleet.controller.workers
        with pytest.raises(InvalidRequest, match="has no replica `other`"):
            await fleet.controller.drain("fake", "other")
        await fleet.controller.drain("fake", name)
        assert fleet.states() == ["draining"]
        await fleet.until(lambda: name not in fleet.controller.workers)
        await fleet.ready(1)
        assert fleet.controller.models["fake"].failure == ""


async def test_new_revision_replaces_the_old_one(tmp_path: Path) -> None:
    async with controlled(tmp_path, min_replicas=1) as fleet:
        await fleet.ready(1)
        (old,) = fleet.controller.workers
        fleet.controller.update({"fake": replace(DEFAULT, min_replicas=1, revision="2")})
        await fleet.until(lambda: old not in fleet.controller.workers)
        (new,) = fleet.controller.workers.values()
        assert new.revision == "2"


async def test_backlog_adds_a_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokka.fleet.scaling._SLOW_S", 0.05)
    async with controlled(tmp_path, min_replicas=1) as fleet:
        await fleet.ready(1)
        fleet.load = Load(8, 3.0)
        await fleet.ready(2)


async def test_workers_of_an_earlier_gateway_are_taken_over(tmp_path: Path) -> None:
    async with controlled(tmp_path, min_replicas=1) as fleet:
        await fleet.ready(1)
        earlier, managed = fleet.controller, fleet.controller.models
        fleet.controller = Controller(
            managed, {"local": fleet.launcher}, earlier._on_start, drain_timeout_s=5, target_wait_s=1
        )
        await fleet.look()
        assert fleet.states() == ["ready"]
        assert set(fleet.controller.workers) == set(earlier.workers)
        assert len(fleet.launcher.workers) == 1


async def test_worker_of_a_removed_model_ends(tmp_path: Path) -> None:
    async with controlled(tmp_path) as fleet:
        await fleet.launcher.start(replace(DEFAULT, name="removed"), "removed-1")
        await fleet.until(lambda: "removed-1" not in fleet.launcher.workers)
        assert fleet.controller.workers == {}
        assert fleet.controller.models["fake"].failure == ""


async def test_worker_started_by_hand_serves_and_is_left_alone(tmp_path: Path) -> None:
    async with controlled(tmp_path) as fleet, worker(fleet.gateway, worker="by-hand"):
        await fleet.until(lambda: fleet.model.progress().state == "ready")
        await fleet.look()
        assert fleet.controller.workers["by-hand"].launcher is None
        await fleet.look()
        assert fleet.launcher.stopped == []
    assert fleet.launcher.workers == {}


@pytest.mark.parametrize("limit", ["_JOIN_S", "_REJOIN_S"])
async def test_silent_worker_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    async with controlled(tmp_path, min_replicas=1) as fleet:
        if limit == "_REJOIN_S":
            await fleet.ready(1)
            await fleet.gateway.listener.close()
            await fleet.until(lambda: not fleet.model.members)
        else:
            # It never joins, because nobody listens.
            await fleet.gateway.listener.close()
            await fleet.look()
        (name,) = fleet.controller.workers
        monkeypatch.setattr(tokka.fleet.controller, limit, 0.0)
        await fleet.until(lambda: (name, True) in fleet.launcher.stopped)
        await fleet.until(lambda: name not in fleet.controller.workers)
        assert fleet.controller.models["fake"].failure == "ended with exit code 0"


async def test_stop_drains_every_worker(tmp_path: Path) -> None:
    async with controlled(tmp_path, min_replicas=2) as fleet:
        await fleet.ready(2)
        await fleet.controller.stop()
        assert fleet.launcher.workers == {}
        assert all(not kill for _, kill in fleet.launcher.stopped)


async def test_run_wakes_for_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.fleet.controller, "_LOOK_S", 60.0)
    async with controlled(tmp_path) as fleet:
        fleet.model._on_change = fleet.controller.wake
        running = asyncio.create_task(fleet.controller.run())
        await asyncio.sleep(0)
        with pytest.raises(ModelStarting):
            fleet.model.lease(ASKED)
        async with asyncio.timeout(5):
            async for progress in fleet.model.changes():
                if progress.state == "ready":
                    break
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

"""The contract of every launcher. Subclass `LauncherContract` and give it a `site` fixture.

A site's launchers run `tokka worker` with the scripted engine, and the workers join its gateway. Their capacity, if
they have one, is two GPUs.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.contract import ask, collect
from tests.fleet.gateways import Gateway
from tokka.core import Sampling
from tokka.fleet.launchers.base import Launched, Launcher, LaunchFailed
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.spec import ModelSpec, Resources

SPEC = ModelSpec(
    name="poro",
    aliases=(),
    model="fake",
    settings={"engine": "fake", "engine_arg": "token_delay_s=0.02"},
    revision="r1",
    resources=Resources(gpus=1),
)
# A worker of it ends at its start, and names the argument.
BROKEN = dataclasses.replace(SPEC, name="broken", settings={"engine": "fake", "engine_arg": "no_such_argument=1"})


@dataclass
class Site:
    """A gateway, and the launchers of its state. A test closes a launcher before it makes the next one."""

    gateway: Gateway
    make: Callable[[], Launcher]
    launchers: list[Launcher] = field(default_factory=list)

    def launcher(self) -> Launcher:
        self.launchers.append(self.make())
        return self.launchers[-1]

    async def joined(self, worker: str) -> RemoteWorker:
        """Return a worker whose engine is ready."""
        return await self.gateway.worker(lambda w: (w.hello.worker, w.state) == (worker, "ready"), within_s=60)

    async def close(self) -> None:
        """End all workers, and close the last launcher."""
        launcher = self.launchers[-1]
        for launched in await launcher.list():
            await launcher.stop(launched.worker, kill=True)
        await listed(launcher, lambda found: not found)
        await launcher.close()


async def listed(launcher: Launcher, fact: Callable[[list[Launched]], Any], within_s: float = 60) -> list[Launched]:
    """Return the first list for which `fact` is true."""
    async with asyncio.timeout(within_s):
        while True:
            found = list(await launcher.list())
            if fact(found):
                return found
            # No launcher tells of changes.
            await asyncio.sleep(0.02)


async def ended(launcher: Launcher, worker: str) -> str:
    """Return why a worker has ended, and check that no second list has it."""
    found = await listed(launcher, lambda found: any(one.worker == worker and one.ended for one in found))
    assert worker not in [one.worker for one in await launcher.list()]
    return next(one.ended for one in found if one.worker == worker and one.ended)


class LauncherContract:
    """Tests that every launcher must pass."""

    async def test_started_worker_joins_and_is_listed(self, site: Site) -> None:
        launcher = site.launcher()
        assert list(await launcher.list()) == []
        await launcher.start(SPEC, "w1")
        worker = await site.joined("w1")
        assert worker.hello.model == "poro"
        (launched,) = await launcher.list()
        assert (launched.worker, launched.model, launched.revision, launched.ended) == ("w1", "poro", "r1", None)
        assert launched.node == worker.hello.node
        assert launched.pid in (None, worker.hello.pid)
        assert 0 <= launched.age_s < 60

    async def test_stopped_worker_drains_and_is_listed_as_ended_once(self, site: Site) -> None:
        launcher = site.launcher()
        await launcher.start(SPEC, "w1")
        worker = await site.joined("w1")
        running = asyncio.create_task(collect(worker.engine, ask(sampling=Sampling(max_tokens=50, ignore_eos=True))))
        while worker.engine.stats().unfinished == 0:  # noqa: ASYNC110 - the worker tells in a frame
            await asyncio.sleep(0.01)
        await launcher.stop("w1")
        # A plan may ask again. The requests go on all the same.
        await launcher.stop("w1")
        assert (await running).usage.completion_tokens == 50
        assert "stopped" in await ended(launcher, "w1")

    async def test_killed_worker_ends_at_once_with_its_requests(self, site: Site) -> None:
        launcher = site.launcher()
        await launcher.start(SPEC, "w1")
        worker = await site.joined("w1")
        running = asyncio.create_task(collect(worker.engine, ask(sampling=Sampling(max_tokens=4000, ignore_eos=True))))
        while worker.engine.stats().unfinished == 0:  # noqa: ASYNC110 - the worker tells in a frame
            await asyncio.sleep(0.01)
        await launcher.stop("w1", kill=True)
        assert "killed" in await ended(launcher, "w1")
        (error,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(error, Exception)

    async def test_worker_that_dies_at_its_start_is_listed_with_a_reason(self, site: Site) -> None:
        launcher = site.launcher()
        await launcher.start(BROKEN, "w1")
        assert "no_such_argument" in await ended(launcher, "w1")

    async def test_unknown_workers_are_ignored(self, site: Site) -> None:
        launcher = site.launcher()
        await launcher.stop("w9")
        await launcher.stop("w9", kill=True)
        assert list(await launcher.list()) == []

    async def test_workers_of_an_earlier_gateway_are_found(self, site: Site) -> None:
        first = site.launcher()
        await first.start(SPEC, "w1")
        worker = await site.joined("w1")
        (before,) = await first.list()
        await first.close()
        second = site.launcher()
        (after,) = await second.list()
        assert dataclasses.replace(after, age_s=0) == dataclasses.replace(before, age_s=0)
        assert after.age_s >= before.age_s
        assert worker.state == "ready"
        await second.stop("w1")
        assert "stopped" in await ended(second, "w1")

    async def test_start_that_does_not_fit_is_refused(self, site: Site) -> None:
        launcher = site.launcher()
        if launcher.capacity is None:
            pytest.skip("this launcher queues")
        assert launcher.capacity.gpus == 2
        big = dataclasses.replace(SPEC, resources=Resources(gpus=3))
        with pytest.raises(LaunchFailed, match=r"poro needs .*gpus 3, but 2 of .*2 GPUs are free"):
            await launcher.start(big, "w1")
        assert list(await launcher.list()) == []

    async def test_second_worker_with_an_id_is_refused(self, site: Site) -> None:
        launcher = site.launcher()
        await launcher.start(SPEC, "w1")
        with pytest.raises(LaunchFailed, match="w1 exists"):
            await launcher.start(SPEC, "w1")
        assert len(await launcher.list()) == 1

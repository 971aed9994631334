"""The demand for a model: requests that found no replica, and requests that move to one that was added."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.engine.contract import ask, collect
from tests.fleet.gateways import Gateway, gateway, worker
from tests.fleet.simulated_fleet import spec
from tokka.core import Sampling
from tokka.errors import EngineDied, ModelStarting
from tokka.fleet.model import FleetModel

LONG = Sampling(max_tokens=4000, ignore_eos=True)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as listening:
        yield listening


@pytest.fixture
def model() -> FleetModel:
    return FleetModel(spec(), lambda: None)


async def join(opened: Gateway, model: FleetModel, stack: AsyncExitStack, *names: str) -> None:
    for name in names:
        await stack.enter_async_context(worker(opened, worker=name))
        model.take(await opened.worker(lambda one, name=name: (one.hello.worker, one.state) == (name, "ready")))  # type: ignore[misc]


async def test_request_is_expected_until_it_comes_back(opened: Gateway, model: FleetModel) -> None:
    with pytest.raises(ModelStarting):
        model.lease(ask())
    async with AsyncExitStack() as stack:
        await join(opened, model, stack, "a")
        assert model.missed_s is not None
        model.lease(ask())
        assert model.missed_s is None


async def test_queued_request_moves_to_a_replica_that_is_added(opened: Gateway, model: FleetModel) -> None:
    async with AsyncExitStack() as stack:
        await join(opened, model, stack, "a")
        running = [model.lease(ask(), is_admitted=True) for _ in range(4)]
        queued = model.lease(ask())
        assert model.keeps(queued)
        await join(opened, model, stack, "b")
        assert not model.keeps(queued)
        queued.release()
        moved = model.lease(ask(), is_admitted=True)
        assert moved.replica is not queued.replica
        # As soon as the others have ended, a request stays.
        later = model.lease(ask())
        for lease in running:
            lease.release()
        assert model.keeps(later)
        later.admit()
        assert later.replica.admitted == 1 + (later.replica is moved.replica)


async def test_close_ends_the_open_requests_on_both_sides(opened: Gateway, model: FleetModel) -> None:
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(worker(opened))
        model.take(await opened.ready())
        running = asyncio.create_task(collect(model.engine(), ask(sampling=LONG)))
        while not served.open_requests:  # noqa: ASYNC110 - the worker tells nobody
            await asyncio.sleep(0.01)
        await model.close()
        with pytest.raises(EngineDied):
            await running
        async with asyncio.timeout(5):
            while served.open_requests:  # noqa: ASYNC110 - the worker tells nobody
                await asyncio.sleep(0.01)
        with pytest.raises(ModelStarting):
            model.lease(ask())

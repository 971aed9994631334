"""A worker and its gateway in one process: states, drain, loss and return."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine.contract import ask, collect
from tests.events import Collector
from tests.fleet.gateways import Gateway, gateway, options_of, until, worker
from tokka.core import ChatPrompt, ChoiceDone, Event, Sampling, TextDelta, TextPrompt, ToolCallDelta, Tools
from tokka.engine.base import Engine
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.errors import Draining, EngineDied, EngineLost, InvalidRequest, TemporaryError
from tokka.fleet.worker import Worker
from tokka.protocol.worker.frames import MAX_BYTES

SLOW = FakeOptions(token_delay_s=0.01)
LONG = Sampling(max_tokens=100, ignore_eos=True)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as listening:
        yield listening


async def test_phases_of_the_start_reach_the_gateway(opened: Gateway) -> None:
    phases = []
    async with worker(opened, create_engine=lambda: FakeEngine(FakeOptions(start_delay_s=0.2, max_model_len=99))):
        joined = await opened.worker(lambda _: True)
        assert opened.listener.workers["w1"].state == "starting"
        info = await joined.engine.start(lambda phase, _detail: phases.append(phase))
        assert (info.engine, info.max_model_len) == ("fake", 99)
        assert "loading weights" in phases
        assert joined.state == "ready"


async def test_step_costs_reach_the_gateway(opened: Gateway) -> None:
    async with worker(opened, create_engine=lambda: FakeEngine(FakeOptions(step_s=0.002))):
        engine = (await opened.ready()).engine
        info = await engine.start(lambda *_: None)
        assert info.costs is not None
        assert info.costs.fixed_s == pytest.approx(0.002, rel=0.01)
        await collect(engine, ask(sampling=LONG))
        assert engine.stats().costs is not None


async def test_gateway_learns_of_a_death_and_of_the_next_engine(opened: Gateway) -> None:
    async with worker(opened, create_engine=lambda: FakeEngine(FakeOptions(die_on="poison"))):
        joined = await opened.ready()
        engine = joined.engine
        with pytest.raises(EngineDied):
            await collect(engine, ask(TextPrompt("poison")))
        await opened.state(joined, "starting")
        assert engine.stats().death is not None
        with pytest.raises(EngineDied):
            await engine.prepare(ask())
        await opened.state(joined, "ready")
        assert joined.engine is not engine
        assert (await collect(joined.engine, ask())).usage.completion_tokens == 12


async def test_a_drain_refuses_new_requests_and_finishes_the_open_ones(opened: Gateway) -> None:
    running = Worker(options_of(opened), lambda: FakeEngine(SLOW))
    ending = asyncio.create_task(running.run())
    joined = await opened.ready()
    stream = asyncio.create_task(collect(joined.engine, ask(sampling=LONG)))
    prepared = await joined.engine.prepare(ask())
    running.drain()
    await opened.state(joined, "draining")
    with pytest.raises(Draining):
        await joined.engine.prepare(ask())
    # Prepared before the drain: it is still served.
    sink = Collector()
    assert (await prepared.run(sink)).completion_tokens == 12
    assert (await stream).usage.completion_tokens == 100
    await asyncio.wait_for(ending, 5)
    assert joined.state == "gone"


async def test_the_gateway_can_ask_for_a_drain(opened: Gateway) -> None:
    running = Worker(options_of(opened), lambda: FakeEngine(SLOW))
    ending = asyncio.create_task(running.run())
    joined = await opened.ready()
    stream = asyncio.create_task(collect(joined.engine, ask(sampling=LONG)))
    await until(lambda: joined.engine.stats().unfinished == 1)
    joined.drain()
    assert (await stream).usage.completion_tokens == 100
    await asyncio.wait_for(ending, 5)


async def test_a_drain_has_a_timeout_and_the_rest_is_lost(opened: Gateway) -> None:
    running = Worker(options_of(opened, drain_timeout_s=0.2), lambda: FakeEngine(FakeOptions(token_delay_s=5)))
    ending = asyncio.create_task(running.run())
    joined = await opened.ready()
    stream = asyncio.create_task(collect(joined.engine, ask(sampling=LONG)))
    await until(lambda: joined.engine.stats().unfinished == 1)
    running.drain()
    # No engine has died: it does not count against the request.
    with pytest.raises(EngineLost):
        await stream
    await asyncio.wait_for(ending, 5)


async def test_lost_gateway_is_dialled_again_and_the_engine_goes_on(tmp_path: Path) -> None:
    engines = []

    def create() -> FakeEngine:
        engines.append(FakeEngine(SLOW))
        return engines[-1]

    async with gateway(tmp_path) as first:
        port = first.address.port
        running = Worker(options_of(first), create)
        ending = asyncio.create_task(running.run())
        joined = await first.ready()
        stream = asyncio.create_task(collect(joined.engine, ask(sampling=LONG)))
        await until(lambda: joined.engine.stats().unfinished == 1)
    with pytest.raises(EngineLost):
        await stream
    async with gateway(tmp_path, port=port) as second:
        assert (await collect((await second.ready()).engine, ask())).usage.completion_tokens == 12
        assert len(engines) == 1
        # Nothing of the lost stream is left.
        assert engines[0].stats().unfinished == 0
        running.drain()
        await asyncio.wait_for(ending, 5)


async def test_worker_without_a_gateway_ends_after_its_timeout(tmp_path: Path) -> None:
    async with gateway(tmp_path) as gone:
        options = options_of(gone, gateway_timeout_s=0.5)
    with pytest.raises(TemporaryError, match=r"no gateway could be reached for 0.5 s; looked at 127.0.0.1"):
        await asyncio.wait_for(Worker(options, lambda: FakeEngine(SLOW)).run(), 5)


async def test_a_worker_serves_two_gateways(tmp_path: Path) -> None:
    async with gateway(tmp_path) as one, gateway(tmp_path) as two, worker(one, two):
        first, second = (await one.ready()).engine, (await two.ready()).engine
        results = await asyncio.gather(collect(first, ask()), collect(second, ask()))
        assert [result.usage.completion_tokens for result in results] == [12, 12]


async def test_a_prepared_request_that_never_runs_is_forgotten(opened: Gateway) -> None:
    async with worker(opened) as running:
        engine = (await opened.ready()).engine
        prepared = await engine.prepare(ask())
        (link,) = running._links
        assert link._joined is not None
        requests = link._joined._requests
        assert len(requests._tasks) == 1
        del prepared
        gc.collect()
        await asyncio.wait_for(requests.idle(), 2)


async def test_a_cancelled_request_stops_on_the_worker(opened: Gateway) -> None:
    engines = [FakeEngine(SLOW)]
    async with worker(opened, create_engine=lambda: engines[0]):
        engine, sink = (await opened.ready()).engine, Collector()
        prepared = await engine.prepare(ask(sampling=Sampling(max_tokens=4000, ignore_eos=True)))
        run = asyncio.create_task(prepared.run(sink))
        await until(lambda: bool(sink.events))
        run.cancel()
        await until(lambda: not engines[0].stats().unfinished)


async def test_a_value_that_no_message_can_hold_is_refused(opened: Gateway) -> None:
    async with worker(opened):
        engine = (await opened.ready()).engine
        prompt = ChatPrompt(({"role": "user", "content": "Hei", "number": 2**70},))
        with pytest.raises(InvalidRequest, match="`messages` holds a value that cannot be passed on"):
            await engine.prepare(ask(prompt))
        assert (await collect(engine, ask())).usage.completion_tokens == 12


async def test_a_request_above_the_largest_frame_is_refused(opened: Gateway) -> None:
    async with worker(opened):
        engine = (await opened.ready()).engine
        with pytest.raises(InvalidRequest, match="more than 64 MiB"):
            await engine.prepare(ask(TextPrompt("x" * (MAX_BYTES + 1))))
        assert (await collect(engine, ask())).usage.completion_tokens == 12


async def test_events_keep_their_order_behind_a_full_sink(opened: Gateway) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    prompt = ChatPrompt(({"role": "user", "content": "Hei"},), Tools((tool,)))
    request = ask(prompt, sampling=Sampling(n=2, max_tokens=1000))

    async def events(engine: Engine, *, slowly: bool) -> list[Event]:
        prepared, sink = await engine.prepare(request), Collector()
        if slowly:
            sink.block()
        run = asyncio.create_task(prepared.run(sink))
        if slowly:
            # The rest waits in the backlog, the end of the answer included.
            await until(lambda: not scripted[0].stats().unfinished)
            sink.release()
        await run
        return sink.events

    scripted = [FakeEngine(FakeOptions(tool_calls=True))]
    async with worker(opened, create_engine=lambda: scripted[0]):
        engine = (await opened.ready()).engine
        direct = await events(engine, slowly=False)
        held = await events(engine, slowly=True)
    for index in range(2):
        for kind in (ToolCallDelta, ChoiceDone):
            assert [e for e in held if isinstance(e, kind) and e.index == index] == [
                e for e in direct if isinstance(e, kind) and e.index == index
            ]
        ends = [type(e) for e in held if getattr(e, "index", None) == index]
        assert ends[-1] is ChoiceDone
        texts = ["".join(e.text for e in found if isinstance(e, TextDelta)) for found in (direct, held)]
        assert texts[0] == texts[1]

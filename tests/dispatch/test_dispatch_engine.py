"""The engine of a request: which engine runs it, when it stops, and refusals before it gets the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

import tokka.engine.supervision.supervisor
from tests.dispatch.bench import Bench, allowance, bench, complete, endless, record, request
from tests.events import one_by_one
from tests.supervised import until
from tokka.accounts.downtimes import Downtimes
from tokka.core import Event, GenerateRequest, TextPrompt
from tokka.dispatch.generation import Generation
from tokka.downtime import Downtime
from tokka.errors import Maintenance, ModelStarting


async def queued(b: Bench) -> asyncio.Task[Generation]:
    """Return a request that is rendered and queued."""
    task = asyncio.create_task(b.dispatcher.open(request(), record(), allowance()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert b.admission.waiting_choices == 1
    return task


async def test_queued_request_runs_on_the_next_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
    async with bench(endless, max_open=1, max_waiting=1) as b:
        running = await b.dispatcher.open(request(), record(), allowance())
        waiting = await queued(b)
        b.engine.death = "killed"
        await until(b.supervisor, lambda progress: progress.state == "ready" and len(b.engines) == 2)
        await running.aclose()
        generation = await waiting
        async with aclosing(one_by_one(generation.run)) as events:
            await anext(events)
            await anext(events)
            assert [engine.open_generations for engine in b.engines] == [0, 1]
        await generation.aclose()
        assert b.engine.open_generations == 0


async def test_queued_request_is_refused_when_the_engine_is_dead() -> None:
    async with bench(endless, max_open=1, max_waiting=1) as b:
        running = await b.dispatcher.open(request(), record(), allowance())
        waiting = await queued(b)
        b.engine.death = "killed"
        await running.aclose()
        with pytest.raises(ModelStarting):
            await waiting
        assert (b.admission.open_requests, b.engine.open_generations) == (0, 0)


async def test_engine_stops_before_the_place_is_given_away() -> None:
    running_at_end: list[int] = []

    async def script(asked: GenerateRequest) -> AsyncGenerator[Event, None]:
        try:
            async for event in endless(asked):
                yield event
        finally:
            running_at_end.append(b.admission.policy.batch.choices)

    async with bench(script) as b:
        generation = await b.dispatcher.open(request(), record(), allowance())
        async with aclosing(one_by_one(generation.run)) as events:
            await anext(events)
            await anext(events)
        await generation.aclose()
    assert running_at_end == [1]


async def test_downtime_refuses_everything_that_is_new() -> None:
    downtimes = Downtimes()
    async with bench(complete, downtimes=downtimes) as b:
        now_s = int(time.time())
        downtimes.apply([Downtime("d", now_s - 5, now_s + 60, "new GPUs")])
        with pytest.raises(Maintenance):
            await b.dispatcher.open(request(), record(), allowance())
        with pytest.raises(Maintenance):
            await b.dispatcher.tokenize("m", TextPrompt("x"), record(), allowance())
        with pytest.raises(Maintenance):
            await b.dispatcher.detokenize("m", [1], record(), allowance())
        downtimes.apply([])
        assert await b.dispatcher.detokenize("m", [1], record(), allowance()) == "x"

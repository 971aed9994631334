"""The gateway's side of an engine, against a worker that is played message by message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.engine.contract import ask
from tests.events import Collector
from tokka.core import ChoiceDone, Event, TextDelta, Usage
from tokka.engine.base import Prepared
from tokka.engine.remote.engine import RemoteEngine
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import Draining, EngineDied, EngineLost, StartupError
from tokka.protocol.worker import messages

INFO = ModelInfo(100, 256, "fake", "1", has_chat_template=True)


class Link:
    """Keeps the sent messages."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self._number = 0

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def send(self, message: messages.Message) -> None:
        self.sent.append(message)


class BadSink(Collector):
    """A sink with a fault."""

    def take(self, event: Event) -> bool:
        raise KeyError("a fault of ours")


@pytest.fixture
async def link() -> Link:
    return Link()


@pytest.fixture
async def engine(link: Link) -> RemoteEngine:
    return RemoteEngine(link)


async def prepared(engine: RemoteEngine, link: Link) -> Prepared:
    preparing = asyncio.create_task(engine.prepare(ask()))
    await asyncio.sleep(0)
    engine.receive(messages.Accepted(link.sent[-1].request, [b"\x01\x00\x00\x00"], [5], 0))
    return await preparing


async def test_start_reports_the_last_phase_first(engine: RemoteEngine) -> None:
    phases = []
    engine.report("loading weights", "x")
    starting = asyncio.create_task(engine.start(lambda phase, detail: phases.append((phase, detail))))
    await asyncio.sleep(0)
    engine.report("warming up", "")
    engine.ready(INFO)
    assert await starting == INFO
    assert phases == [("loading weights", "x"), ("warming up", "")]


async def test_start_fails_when_the_worker_is_lost(engine: RemoteEngine) -> None:
    starting = asyncio.create_task(engine.start(lambda *_: None))
    await asyncio.sleep(0)
    engine.end(EngineLost(), "the worker was lost")
    with pytest.raises(StartupError, match="the worker was lost"):
        await starting


async def test_calls_and_requests_end_with_the_engine(engine: RemoteEngine, link: Link) -> None:
    sink = Collector()
    running = asyncio.create_task((await prepared(engine, link)).run(sink))
    waiting = await prepared(engine, link)
    call = asyncio.create_task(engine.token_texts([1], "tenant"))
    await asyncio.sleep(0)
    engine.end(EngineDied(), "it died")
    for failing in (running, call, waiting.run(sink), engine.prepare(ask()), engine.ping()):
        with pytest.raises(EngineDied):
            await failing
    assert engine.stats().death == "it died"


async def test_fault_on_an_event_ends_only_its_request(engine: RemoteEngine, link: Link) -> None:
    bad = asyncio.create_task((await prepared(engine, link)).run(BadSink()))
    sink = Collector()
    good = asyncio.create_task((await prepared(engine, link)).run(sink))
    await asyncio.sleep(0)
    for number in (1, 2):
        engine.receive(messages.Delta(number, 0, "a", [1], ""))
    with pytest.raises(KeyError):
        await bad
    # The worker stops it.
    assert link.sent[-1] == messages.Abort(1)
    engine.receive(messages.Ended(2, ChoiceDone(0, "stop")))
    engine.receive(messages.Completed(2, Usage(1, 1)))
    assert await good == Usage(1, 1)
    assert sink.events == [TextDelta(0, "a", [1]), ChoiceDone(0, "stop")]


async def test_messages_of_a_request_that_is_over_are_dropped(engine: RemoteEngine, link: Link) -> None:
    preparing = asyncio.create_task(engine.prepare(ask()))
    await asyncio.sleep(0)
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)
    assert link.sent[-1] == messages.Abort(1)
    engine.receive(messages.Accepted(1, [], [], 0))
    engine.receive(messages.Delta(1, 0, "a", [1], ""))
    engine.receive(messages.Completed(1, Usage(1, 1)))


async def test_error_after_the_last_choice_reaches_the_request(engine: RemoteEngine, link: Link) -> None:
    running = asyncio.create_task((await prepared(engine, link)).run(Collector()))
    await asyncio.sleep(0)
    engine.receive(messages.Ended(1, ChoiceDone(0, "stop")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    engine.end(EngineDied(), "it died")
    with pytest.raises(EngineDied):
        await running


async def test_drain_refuses_and_a_prepared_request_still_runs(engine: RemoteEngine, link: Link) -> None:
    before = await prepared(engine, link)
    engine.refuse(Draining("draining"))
    with pytest.raises(Draining):
        await engine.prepare(ask())
    running = asyncio.create_task(before.run(Collector()))
    await asyncio.sleep(0)
    assert link.sent[-1] == messages.Go(1)
    running.cancel()


async def test_unfinished_counts_the_requests_of_this_gateway(engine: RemoteEngine, link: Link) -> None:
    engine.note(EngineStats(running=7, unfinished=7, steps=3))
    running = asyncio.create_task((await prepared(engine, link)).run(Collector()))
    await asyncio.sleep(0)
    assert engine.stats() == EngineStats(running=7, unfinished=1, steps=3)
    running.cancel()


async def test_token_texts_are_the_workers(engine: RemoteEngine) -> None:
    call = asyncio.create_task(engine.token_texts([1, 2], "tenant"))
    await asyncio.sleep(0)
    engine.receive(messages.Texts(1, ["a", "b"]))
    assert await call == ["a", "b"]

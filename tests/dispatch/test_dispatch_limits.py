"""Limits of a key in the dispatcher: tokens are reserved before the first one and settled after the last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.admission.controllers import controller
from tests.events import events_of
from tests.supervised import supervisor_of, until_ready
from tokka.admission.allowance import Allowance, Allowances
from tokka.admission.memory import MemoryBudget
from tokka.admission.quarantine import Quarantine
from tokka.core import ChoiceDone, Finished, GenerateRequest, Key, Limits, RequestRecord, Sampling, Spent, TextPrompt
from tokka.dispatch.catalogue import Catalogue, ServedModel
from tokka.dispatch.dispatcher import Dispatcher
from tokka.dispatch.ending import finish
from tokka.dispatch.generation import Generation
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.errors import InvalidRequest, ModelNotFound, QuotaExceeded, RateLimited, ServerOverloaded

PROMPT = TextPrompt("0123456789")
NOTHING = Spent()


def key(models: frozenset[str] | None = None, **limits: Any) -> Key:
    return Key("k", "tenant", frozenset({"inference"}), Limits(**limits), models)


def record(who: Key) -> RequestRecord:
    return RequestRecord("r", time.monotonic(), key=who)


def ask(max_tokens: int | None = None, n: int = 1) -> GenerateRequest:
    return GenerateRequest("id", "m", (PROMPT,), Sampling(n=n, max_tokens=max_tokens))


class Bench:
    """A dispatcher, and the middleware's part of the work."""

    def __init__(self, dispatcher: Dispatcher, allowances: Allowances) -> None:
        self.dispatcher = dispatcher
        self._allowances = allowances
        self._held: dict[int, Allowance] = {}

    def names(self, who: Key) -> tuple[str, ...]:
        return self.dispatcher.names(who)

    async def open(self, request: GenerateRequest, seen: RequestRecord) -> Generation:
        assert seen.key
        allowance = self._held[id(seen)] = self._allowances.open(seen.key, time.monotonic())
        return await self.dispatcher.open(request, seen, allowance)

    def settle(self, seen: RequestRecord, status: int = 200) -> None:
        finish(seen, self._held[id(seen)], status, lambda _: None)

    async def finish(self, generation: Generation, seen: RequestRecord) -> list[Any]:
        """Run a generation to its end and settle its allowance."""
        events = await events_of(generation)
        await generation.aclose()
        self.settle(seen)
        return events


@asynccontextmanager
async def dispatcher(spent: Spent = NOTHING, max_running: int = 8, **options: Any) -> AsyncIterator[Bench]:
    supervisor = supervisor_of(lambda: FakeEngine(FakeOptions(**options)))
    running: asyncio.Task[None] = asyncio.create_task(supervisor.run())
    await until_ready(supervisor)
    try:
        answers = MemoryBudget(1 << 30, "answers")
        model = ServedModel(("m", "also"), supervisor, controller(max_running), Quarantine(600))
        made = Dispatcher(Catalogue([model]), answers)
        yield Bench(made, Allowances(lambda _: spent))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await supervisor.close()


async def test_key_cap_limits_open_requests_and_refuses_longer_ones() -> None:
    async with dispatcher() as b:
        seen = record(key(max_completion_tokens=5))
        events = await b.finish(await b.open(ask(), seen), seen)
        assert events[-2:] == [ChoiceDone(0, "length"), Finished(events[-1].usage)]
        assert seen.completion_tokens == 5
        with pytest.raises(InvalidRequest, match="at most 5"):
            await b.open(ask(max_tokens=6), record(key(max_completion_tokens=5)))


async def test_a_model_the_key_may_not_use_does_not_exist_for_it() -> None:
    async with dispatcher() as b:
        with pytest.raises(ModelNotFound) as hidden:
            await b.open(ask(), record(key(frozenset({"also"}))))
        assert "Served to you: also." in hidden.value.message
        assert b.names(key(frozenset({"also", "gone"}))) == ("also",)
        assert b.names(key()) == ("m", "also")


async def test_unused_reserved_tokens_are_returned() -> None:
    async with dispatcher(answer="abc") as b:
        who = key(tpm=100)
        for _ in range(3):
            # 70 tokens are reserved, 10 of them for the prompt; 14 are used.
            seen = record(who)
            try:
                generation = await b.open(ask(max_tokens=60), seen)
            except RateLimited as refused:
                pytest.fail(refused.message)
            await b.finish(generation, seen)
            assert seen.completion_tokens == 4
        with pytest.raises(RateLimited):
            await b.open(ask(max_tokens=60), record(who))


async def test_concurrent_requests_cannot_exceed_the_quota() -> None:
    async with dispatcher() as b:
        who = key(daily_tokens=100)
        first, second = record(who), record(who)
        generations = [await b.open(ask(max_tokens=40), first), await b.open(ask(max_tokens=40), second)]
        with pytest.raises(QuotaExceeded):
            await b.open(ask(max_tokens=1), record(who))
        for generation, seen in zip(generations, (first, second), strict=True):
            await b.finish(generation, seen)


async def test_request_without_a_limit_gets_the_rest_of_the_quota() -> None:
    async with dispatcher(Spent(day=70)) as b:
        seen = record(key(daily_tokens=100))
        events = await b.finish(await b.open(ask(n=2), seen), seen)
        assert [event.finish_reason for event in events if isinstance(event, ChoiceDone)] == ["length", "length"]
        # 30 tokens are left, 10 of them for the prompt.
        assert seen.prompt_tokens + seen.completion_tokens == 30
    async with dispatcher(Spent(day=91)) as b:
        with pytest.raises(QuotaExceeded):
            await b.open(ask(), record(key(daily_tokens=100)))


async def test_a_request_that_the_server_refuses_costs_the_key_nothing() -> None:
    async with dispatcher(max_running=1) as b:
        who = key(rpm=2, max_running=5)
        first, refused = record(who), record(who)
        generation = await b.open(ask(max_tokens=5), first)
        with pytest.raises(ServerOverloaded):
            await b.open(ask(max_tokens=5), refused)
        b.settle(refused, ServerOverloaded.status)
        await b.finish(generation, first)
        again = record(who)
        await b.finish(await b.open(ask(max_tokens=5), again), again)
        with pytest.raises(RateLimited):
            await b.open(ask(max_tokens=5), record(who))

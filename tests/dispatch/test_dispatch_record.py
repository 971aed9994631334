"""The record of a generation, and the charge to its key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

import pytest

import tokka.engine.supervision.supervisor
from tests.dispatch.bench import Bench, Script, bench, failing, record, request
from tests.dispatch.bench import allowance as unlimited
from tests.events import events_of
from tests.supervised import until
from tokka.admission.allowance import Allowances
from tokka.core import (
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    GenerateRequest,
    Key,
    Limits,
    RequestRecord,
    Spent,
    TextDelta,
    Usage,
)
from tokka.dispatch.ending import finish
from tokka.engine.replicas import Progress
from tokka.errors import EngineError, RateLimited


async def cut_and_whole(request: GenerateRequest) -> AsyncGenerator[Event, None]:
    yield Accepted(([1, 2],))
    yield TextDelta(0, "a", (1,))
    yield ChoiceDone(0, "length")
    await asyncio.sleep(0)
    yield TextDelta(1, "b", (1,))
    yield ChoiceDone(1, "stop")
    # The engine also counts a token without text.
    yield Finished(Usage(2, 3, 1))


async def one_of_two(request: GenerateRequest) -> AsyncGenerator[Event, None]:
    yield Accepted(([1, 2],))
    yield TextDelta(0, "a", (1,))
    yield ChoiceDone(0, "stop")
    await asyncio.Event().wait()


async def recorded(script: Script, asked: GenerateRequest) -> tuple[RequestRecord, list[Event]]:
    async with bench(script) as b:
        seen = record()
        generation = await b.dispatcher.open(asked, seen, unlimited())
        events = await events_of(generation)
        await generation.aclose()
        return seen, events


async def test_record_names_the_choice_that_was_cut() -> None:
    seen, _ = await recorded(cut_and_whole, request(n=2))
    assert seen.outcome == "length"


async def test_record_has_the_times_and_tokens_of_a_generation() -> None:
    seen, _ = await recorded(cut_and_whole, request(n=2))
    assert seen.completion_tokens == 3
    assert seen.queue_s is not None
    assert seen.first_token_s is not None
    assert seen.last_token_s is not None
    assert 0 <= seen.queue_s <= time.monotonic() - seen.arrived_s
    assert seen.arrived_s < seen.first_token_s < seen.last_token_s


async def test_deadline_ends_the_choices_that_go_on_alone() -> None:
    seen, events = await recorded(one_of_two, request(n=2, timeout_s=0.2))
    assert [event for event in events if isinstance(event, ChoiceDone)] == [
        ChoiceDone(0, "stop"),
        ChoiceDone(1, "length", "timeout"),
    ]
    assert seen.outcome == "timeout"


def ready_with(b: Bench, engines: int) -> Callable[[Progress], bool]:
    """Return a condition: so many engines were started, and the last one is ready."""
    return lambda progress: progress.state == "ready" and len(b.engines) == engines


async def test_request_that_fails_alone_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.engine.supervision.supervisor, "_LOOK_EVERY_S", 0.0)
    async with bench(failing) as b:
        for number in (1, 2):
            await until(b.supervisor, ready_with(b, number))
            for _ in range(2):
                generation = await b.dispatcher.open(request(), record(), unlimited())
                with pytest.raises(EngineError):
                    await events_of(generation)
                await generation.aclose()
            if number == 1:
                b.engine.death = "killed"


@pytest.mark.parametrize(
    ("queue_s", "status", "is_paid"),
    [(None, 429, False), (None, 503, False), (None, 400, True), (0.1, 500, True), (0.1, 200, True)],
)
def test_key_pays_for_run_requests_and_for_client_errors(queue_s: float | None, status: int, is_paid: bool) -> None:
    book, key = Allowances(lambda _: Spent()), Key("k", "t", frozenset({"inference"}), Limits(rpm=1))
    seen = record()
    seen.queue_s = queue_s
    finish(seen, book.open(key, time.monotonic()), status, lambda _: None)
    if is_paid:
        with pytest.raises(RateLimited):
            book.open(key, time.monotonic())
    else:
        book.open(key, time.monotonic())

"""The way of events to a sink: at once, or held and merged while it is full; none is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.events import Collector
from tokka.core import ChoiceDone, Event, PromptEcho, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta
from tokka.engine.generation import backlog as module
from tokka.engine.generation.backlog import Backlog
from tokka.engine.generation.delivery import Delivery
from tokka.errors import EngineDied, SlowReader


async def test_open_sink_gets_events_in_the_step() -> None:
    sink = Collector()
    delivery = Delivery(sink, 1)
    running = asyncio.create_task(delivery.run())
    await asyncio.sleep(0)
    delivery.put(TextDelta(0, "a", (1,)))
    assert sink.events == [TextDelta(0, "a", (1,))]
    delivery.put(TextDelta(0, "b", (2,)), ChoiceDone(0, "stop"))
    assert sink.events[1:] == [TextDelta(0, "b", (2,)), ChoiceDone(0, "stop")]
    await running


async def test_task_of_a_request_sleeps_while_its_sink_is_open() -> None:
    delivery = Delivery(Collector(), 1)
    running = asyncio.create_task(delivery.run())
    await asyncio.sleep(0)
    waiter = delivery._waiter
    assert waiter is not None
    for number in range(100):
        delivery.put(TextDelta(0, "x", (number,)))
        await asyncio.sleep(0)
    assert delivery._waiter is waiter
    delivery.put(TextDelta(0, "", ()), ChoiceDone(0, "stop"))
    await running


async def test_full_sink_gets_one_merged_delta_when_it_has_room() -> None:
    sink = Collector()
    delivery = Delivery(sink, 1)
    running = asyncio.create_task(delivery.run())
    await asyncio.sleep(0)
    sink.block()
    for number in range(101):
        delivery.put(TextDelta(0, "x", (number,)))
        await asyncio.sleep(0)
    # The first fills the sink, and the task gives the second, which waits for room.
    assert sink.events == [TextDelta(0, "x", (0,)), TextDelta(0, "x", (1,))]
    delivery.put(TextDelta(0, "end", (101,)), ChoiceDone(0, "length"))
    sink.release()
    await running
    assert sink.events[2:] == [TextDelta(0, "x" * 99 + "end", list(range(2, 102))), ChoiceDone(0, "length")]


async def test_sink_with_room_again_gets_events_in_the_step() -> None:
    sink = Collector()
    delivery = Delivery(sink, 1)
    running = asyncio.create_task(delivery.run())
    await asyncio.sleep(0)
    sink.block()
    delivery.put(TextDelta(0, "a", (1,)))
    delivery.put(TextDelta(0, "b", (2,)))
    sink.release()
    # The task gives the held delta, and sleeps again.
    for _ in range(5):
        await asyncio.sleep(0)
    delivery.put(TextDelta(0, "c", (3,)))
    assert [event.text for event in sink.events if isinstance(event, TextDelta)] == ["a", "b", "c"]
    running.cancel()


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.text("abc", max_size=3), st.sampled_from(["block", "release", "turn", ""])),
        max_size=30,
    )
)
async def test_each_choice_gets_its_own_text_tokens_and_end(steps: list[tuple[int, str, str]]) -> None:
    sink = Collector()
    delivery = Delivery(sink, 3)
    running = asyncio.create_task(delivery.run())
    for number, (index, text, before) in enumerate(steps):
        if before == "turn":
            await asyncio.sleep(0)
        elif before:
            getattr(sink, before)()
        delivery.put(TextDelta(index, text, (number,)))
    for index in range(3):
        delivery.put(TextDelta(index, "", ()), ChoiceDone(index, "stop"))
    sink.release()
    await running
    for index in range(3):
        deltas = [event for event in sink.events if isinstance(event, TextDelta) and event.index == index]
        assert "".join(delta.text for delta in deltas) == "".join(text for at, text, _ in steps if at == index)
        tokens = [token for delta in deltas for token in delta.token_ids]
        assert tokens == [number for number, (at, _, _) in enumerate(steps) if at == index]
        own = [event for event in sink.events if getattr(event, "index", None) == index]
        assert isinstance(own[-1], ChoiceDone)


async def test_parts_of_a_prompt_come_before_its_choices() -> None:
    def parts() -> Iterator[Event]:
        yield PromptEcho(0, "once ", None)
        yield PromptEcho(0, "upon", None)

    sink = Collector()
    delivery = Delivery(sink, 1)
    delivery.put_parts(parts())
    delivery.put(TextDelta(0, " a", (1,)), ChoiceDone(0, "length"))
    await delivery.run()
    assert sink.events == [
        PromptEcho(0, "once ", None),
        PromptEcho(0, "upon", None),
        TextDelta(0, " a", (1,)),
        ChoiceDone(0, "length"),
    ]


@pytest.mark.parametrize("is_full", [False, True])
async def test_reader_replaces_events_in_both_ways(is_full: bool) -> None:
    def read(event: Event) -> Iterator[Event]:
        if isinstance(event, TextDelta):
            yield ReasoningDelta(event.index, event.text)
        else:
            yield event

    sink = Collector()
    delivery = Delivery(sink, 1, read)
    if is_full:
        sink.block()
    delivery.put(TextDelta(0, "hm", (1,)))
    delivery.put(TextDelta(0, "so", (2,)), ChoiceDone(0, "stop"))
    sink.release()
    await delivery.run()
    assert sink.events == [ReasoningDelta(0, "hm"), ReasoningDelta(0, "so"), ChoiceDone(0, "stop")]


async def test_events_before_an_error_are_given() -> None:
    sink = Collector()
    delivery = Delivery(sink, 1)
    sink.block()
    delivery.put(TextDelta(0, "so ", (1,)))
    delivery.put(TextDelta(0, "far", (2,)))
    delivery.fail(EngineDied())
    delivery.put(TextDelta(0, "late", (3,)))
    sink.release()
    with pytest.raises(EngineDied):
        await delivery.run()
    assert sink.events == [TextDelta(0, "so ", (1,)), TextDelta(0, "far", (2,))]


async def test_nothing_reaches_the_sink_of_a_cancelled_request() -> None:
    sink = Collector()
    delivery = Delivery(sink, 1)
    running = asyncio.create_task(delivery.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    delivery.put(TextDelta(0, "late", (1,)))
    assert sink.events == []


async def test_request_ends_when_its_client_reads_too_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNITS", 100)
    sink = Collector()
    delivery = Delivery(sink, 1)
    sink.block()
    for number in range(200):
        delivery.put(TextDelta(0, "x", (number,)))
    sink.release()
    with pytest.raises(SlowReader):
        await delivery.run()
    assert [len(event.token_ids) for event in sink.events if isinstance(event, TextDelta)] == [1, 101]


@pytest.mark.parametrize(("alternatives", "most"), [(None, 1000), (20, 5)])
def test_backlog_counts_logprobs(alternatives: int | None, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNITS", 1000)
    top = TokenLogprob(1, "x", b"x", -1.0)
    scored: Any = None if alternatives is None else (TokenLogprob(1, "x", b"x", -1.0, (top,) * alternatives),)
    backlog = Backlog()
    # A token with 20 alternatives counts 169 units, a token without logprobs 1.
    for count in range(most):
        backlog.add(TextDelta(count % 7, "x", (count,), scored), None)
    with pytest.raises(SlowReader):
        backlog.add(TextDelta(0, "x", (0,), scored), None)


async def test_event_read_elsewhere_stays_in_its_place_in_the_backlog() -> None:
    sink = Collector()
    delivery = Delivery(sink, 1)
    running = asyncio.create_task(delivery.run())
    await asyncio.sleep(0)
    sink.block()
    call = ToolCallDelta(0, 0, "{}", "f")
    delivery.put_read(call)
    for event in (TextDelta(0, "a", [1]), TextDelta(0, "b", [2])):
        delivery.put(event)
    delivery.put_read(call)
    delivery.put(TextDelta(0, "c", [3]))
    delivery.put_read(ChoiceDone(0, "stop"))
    sink.release()
    await running
    assert sink.events == [call, TextDelta(0, "ab", [1, 2]), call, TextDelta(0, "c", [3]), ChoiceDone(0, "stop")]
    # The request is over.
    delivery.put_read(call)
    assert len(sink.events) == 5


async def test_events_read_elsewhere_count_towards_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNITS", 20)
    sink = Collector()
    delivery = Delivery(sink, 1)
    running = asyncio.create_task(delivery.run())
    await asyncio.sleep(0)
    sink.block()
    for _ in range(10):
        delivery.put_read(ReasoningDelta(0, "x"))
    sink.release()
    with pytest.raises(SlowReader):
        await running

"""The buffer: no event is lost between engine and reader, and a slow or gathering reader is woken less often."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.core import ChoiceDone, TextDelta, TokenLogprob
from tokka.engine.generation import event_buffer as module
from tokka.engine.generation.event_buffer import EchoReady, EventBuffer
from tokka.errors import EngineDied, SlowReader


async def test_events_come_in_their_order() -> None:
    buffer = EventBuffer()
    buffer.echo(EchoReady(0))
    buffer.put(TextDelta(0, "upon", (1,)))
    buffer.put(TextDelta(1, "a", (2,)), ChoiceDone(1, "length"))
    assert await buffer.get() == [
        EchoReady(0),
        TextDelta(0, "upon", (1,)),
        TextDelta(1, "a", (2,)),
        ChoiceDone(1, "length"),
    ]


@given(steps=st.lists(st.tuples(st.integers(0, 2), st.text("abc", max_size=3), st.booleans()), max_size=30))
def test_whenever_it_is_read_each_choice_gets_its_own_text_and_tokens(steps: list[tuple[int, str, bool]]) -> None:
    async def run() -> list[Any]:
        buffer, seen = EventBuffer(), []
        for number, (index, text, reads) in enumerate(steps):
            buffer.put(TextDelta(index, text, (number,)))
            if reads:
                seen += await buffer.get()
        for index in range(3):
            buffer.put(TextDelta(index, "", ()), ChoiceDone(index, "stop"))
        return seen + await buffer.get()

    events = asyncio.run(run())
    for index in range(3):
        deltas = [event for event in events if isinstance(event, TextDelta) and event.index == index]
        assert "".join(delta.text for delta in deltas) == "".join(text for at, text, _ in steps if at == index)
        tokens = [token for delta in deltas for token in delta.token_ids]
        assert tokens == [number for number, (at, _, _) in enumerate(steps) if at == index]
        own = [event for event in events if getattr(event, "index", None) == index]
        assert isinstance(own[-1], ChoiceDone)


async def test_what_gathers_is_one_delta() -> None:
    buffer = EventBuffer()
    for number in range(100):
        buffer.put(TextDelta(0, "x", (number,)))
    (delta,) = await buffer.get()
    assert delta == TextDelta(0, "x" * 100, list(range(100)))


async def test_error_comes_behind_what_was_there() -> None:
    buffer = EventBuffer()
    buffer.put(TextDelta(0, "so far", (1,)))
    buffer.fail(EngineDied())
    assert await buffer.get() == [TextDelta(0, "so far", (1,))]
    with pytest.raises(EngineDied):
        await buffer.get()


async def test_reader_in_no_hurry_is_woken_for_the_first_token_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_S", 3600.0)
    buffer = EventBuffer(batches=True)
    reads: list[list[Any]] = []

    async def read() -> None:
        while not any(isinstance(event, ChoiceDone) for event in (reads or [[]])[-1]):
            reads.append(await buffer.get())

    reader = asyncio.create_task(read())
    for number in range(50):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        buffer.put(TextDelta(0, "x", (number,)), ChoiceDone(0, "length") if number == 49 else None)
    await reader
    assert [len(event.token_ids) for read in reads for event in read if isinstance(event, TextDelta)] == [1, 49]


async def test_reader_that_was_cancelled_leaves_the_event_buffer_usable() -> None:
    buffer = EventBuffer()
    reader = asyncio.create_task(buffer.get())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    buffer.put(TextDelta(0, "x", (1,)))
    assert await buffer.get() == [TextDelta(0, "x", (1,))]


@pytest.mark.parametrize("alternatives", [None, 20])
async def test_event_buffer_ends_a_request_that_is_not_read(
    alternatives: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_UNREAD", 1000)
    buffer = EventBuffer()
    top = TokenLogprob(1, "x", b"x", -1.0)
    scored = None if alternatives is None else (TokenLogprob(1, "x", b"x", -1.0, (top,) * alternatives),)
    count = 0
    while buffer._error is None:
        buffer.put(TextDelta(count % 7, "x", (count,), scored))
        count += 1
    # A token with 20 alternatives counts 169 units, a token without logprobs 1.
    assert count == (1001 if alternatives is None else 6)
    for _ in range(5):
        buffer.put(TextDelta(0, "late", (1,)), ChoiceDone(0, "stop"))
    assert "late" not in [event.text for event in await buffer.get() if isinstance(event, TextDelta)]
    # The engine goes on, but its further text neither fills the memory nor keeps the error from the reader.
    buffer.put(TextDelta(0, "late", (1,)))
    with pytest.raises(SlowReader):
        await buffer.get()


async def test_event_buffer_counts_only_what_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNREAD", 10)
    buffer = EventBuffer()
    for _ in range(20):
        for number in range(10):
            buffer.put(TextDelta(0, "x", (number,)))
        await buffer.get()
    buffer.put(TextDelta(0, "x", (1,)), ChoiceDone(0, "stop"))
    assert isinstance((await buffer.get())[-1], ChoiceDone)

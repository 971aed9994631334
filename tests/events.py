"""Sinks for tests: the events of a generation, all at its end or one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from tokka.core import Event, Finished, GenerateRequest
from tokka.engine.base import Engine, Sink


class Collector:
    """A sink that keeps every event. After `block` it has no room until `release`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._has_room = asyncio.Event()
        self._has_room.set()

    def block(self) -> None:
        self._has_room.clear()

    def release(self) -> None:
        self._has_room.set()

    def take(self, event: Event) -> bool:
        self.events.append(event)
        return self._has_room.is_set()

    async def give(self, event: Event) -> None:
        self.events.append(event)
        await self._has_room.wait()


async def events_of(generation: Any) -> list[Event]:
    """Run a dispatcher's generation; return its events."""
    sink = Collector()
    await generation.run(sink)
    return sink.events


async def engine_events(engine: Engine, request: GenerateRequest) -> list[Event]:
    """Run a request on an engine; return its events between `Accepted` and `Finished`, with both."""
    prepared, sink = await engine.prepare(request), Collector()
    usage = await prepared.run(sink)
    return [prepared.accepted, *sink.events, Finished(usage)]


class _OneByOne:
    """A sink that has room for an event only when the last one has been read."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._wanted = asyncio.Semaphore(0)

    def take(self, event: Event) -> bool:
        self.events.put_nowait(event)
        return False

    async def give(self, event: Event) -> None:
        await self._wanted.acquire()
        self.events.put_nowait(event)

    async def next(self) -> Event:
        self._wanted.release()
        return await self.events.get()


async def one_by_one(run: Callable[[Sink], Awaitable[Any]]) -> AsyncGenerator[Event, None]:
    """Yield the events of a run. The run goes on when the next event is asked for; closing the generator cancels it."""
    sink = _OneByOne()
    running = asyncio.ensure_future(run(sink))
    try:
        while True:
            event = asyncio.ensure_future(sink.next())
            await asyncio.wait((event, running), return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                await running
                return
            yield event.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

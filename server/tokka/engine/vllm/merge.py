"""Several streams as one, each item with the number of its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any


async def merge(streams: Sequence[AsyncGenerator[Any, None]]) -> AsyncGenerator[tuple[int, Any], None]:
    """Yield the items of all streams as they come. Closing it closes them all; the first error ends all."""
    if len(streams) == 1:
        # By far the most common case, and it needs no tasks.
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    # One item of each stream at most waits here: a slow reader slows the streams, not the memory.
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(maxsize=len(streams))
    pumps = [asyncio.create_task(_pump(at, stream, queue)) for at, stream in enumerate(streams)]
    try:
        ended = 0
        while ended < len(streams):
            at, item = await queue.get()
            if item is _END:
                ended += 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                yield at, item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error


_END = object()


async def _pump(at: int, stream: AsyncGenerator[Any, None], queue: asyncio.Queue[tuple[int, Any]]) -> None:
    try:
        async with aclosing(stream) as items:
            async for item in items:
                await queue.put((at, item))
        await queue.put((at, _END))
    except Exception as error:
        await queue.put((at, _Failure(error)))

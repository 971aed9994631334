"""Keeps garbage collection of the whole heap away from requests."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
from collections.abc import Callable

_LOOK_EVERY_S = 1.0
# Smaller collections since the last full one, each after about 7,000 more objects, at which a full one is due: on an
# idle server, and on one that is never idle.
_DUE_IDLE, _DUE_BUSY = 10, 20_000
_NEVER = 2**31 - 1


def trim_heap() -> None:
    """Collect an earlier engine's garbage, exempt long-lived objects from collection, and release free memory.

    Blocks for some tenths of a second and holds the GIL, so call it before the engine is ready.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    # glibc keeps 50 MB that a start has freed.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def collect_while_idle(open_requests: Callable[[], int]) -> None:
    """Run full garbage collections while no request is open, instead of at any time. Runs until cancelled.

    A full collection visits all objects of all open streams, and blocks the event loop for about 80 us per stream.
    Requests leave no cycles behind, so a busy server can wait.
    """
    small, middle, _ = gc.get_threshold()
    gc.set_threshold(small, middle, _NEVER)
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        if is_full_due(gc.get_count()[2], open_requests()):
            gc.collect()


def is_full_due(collections: int, open_requests: int) -> bool:
    """Return whether to collect the whole heap after `collections` smaller collections."""
    return collections >= (_DUE_BUSY if open_requests else _DUE_IDLE)

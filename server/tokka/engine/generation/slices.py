"""Splits long work on the event loop into slices, so that other tasks run in between."""

from __future__ import annotations

import asyncio
import time

# Maximum CPU seconds of the loop's thread per slice.
SLICE_S = 0.005


class Slices:
    """Slices one task's long work. The task calls `rest` between its parts."""

    def __init__(self) -> None:
        self._until_s = time.thread_time() + SLICE_S

    async def rest(self) -> None:
        """Let other tasks run if this slice is used up."""
        if time.thread_time() > self._until_s:
            await asyncio.sleep(0)
            self._until_s = time.thread_time() + SLICE_S

"""Splits long work on the event loop into slices, so that other tasks run in between."""

from __future__ import annotations

import asyncio
import time

# Maximum seconds of a slice. Not of CPU: reading the thread's CPU clock is a system call.
SLICE_S = 0.005


class Slices:
    """Slices one task's long work. The task calls `rest` between its parts."""

    def __init__(self) -> None:
        self._until_s = time.monotonic() + SLICE_S

    async def rest(self) -> None:
        """Let other tasks run if this slice is used up."""
        if time.monotonic() > self._until_s:
            await asyncio.sleep(0)
            self._until_s = time.monotonic() + SLICE_S

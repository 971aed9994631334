"""Long work on the event loop, cut into slices so that others get their turn in between."""

from __future__ import annotations

import asyncio
import time

# Seconds of CPU of the loop's thread.
SLICE_S = 0.005


class Slices:
    """One task's long work. It calls `rest` between its parts."""

    def __init__(self) -> None:
        self._until_s = time.thread_time() + SLICE_S

    async def rest(self) -> None:
        """Let others run if this slice is used up."""
        if time.thread_time() > self._until_s:
            await asyncio.sleep(0)
            self._until_s = time.thread_time() + SLICE_S

"""The process's own memory, put in order after a start."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def settle_heap() -> None:
    """Collect what an earlier engine left, keep the collector off what lives until the end, return free memory.

    Blocks for some tenths of a second and holds the interpreter's lock, so it belongs before the engine is ready.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    # glibc keeps 50 MB of what a start has freed.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

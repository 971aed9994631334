"""Compression of stored documents. Text may shrink a thousandfold, so what comes out has a limit, too."""

from __future__ import annotations

import zlib

# Fastest compression: responses are stored while their clients wait.
_LEVEL = 1


def compressed(data: bytes) -> bytes:
    return zlib.compress(data, _LEVEL)


def inflated(data: bytes, size: int) -> bytes:
    """Return what was compressed: at most `size` bytes."""
    # zlib takes 0 for no limit.
    return zlib.decompressobj().decompress(data, max(1, size))

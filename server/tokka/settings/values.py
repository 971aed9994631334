"""Parsers for values that people write: sizes, weights, keys, paths."""

from __future__ import annotations

import os
from pathlib import Path

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """Return the bytes of a size like `4GiB`, `512M` or `1073741824`. Units are powers of 1024. Raises ValueError."""
    number = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in _UNITS and not number[-1:].isdigit() else ""
    try:
        return int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a size; write for example 4GiB or 512MiB") from None


def parse_weight(item: str) -> tuple[str, float]:
    """Return the tenant and weight of `TENANT=WEIGHT`. Raises ValueError if the weight is not within 0.001 to 1000."""
    tenant, _, number = item.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not tenant or not 0.001 <= weight <= 1000:
        raise ValueError(f"{item!r} is not TENANT=WEIGHT with a weight from 0.001 to 1000")
    return tenant, weight


def is_key(text: str) -> bool:
    """Tell whether a text is a valid key: printable ASCII without spaces."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def expanded(path: Path) -> Path:
    """Return an absolute path with `~` expanded. Raises ValueError if the user has no home folder."""
    text = os.path.expanduser(path)
    if text.startswith("~"):
        raise ValueError(f"{path} needs a home folder, but this user has none")
    return Path(os.path.abspath(text))

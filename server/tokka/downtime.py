"""A planned window in which servers refuse new requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Downtime:
    """A window in which servers refuse new requests. Times are seconds since 1970, in UTC; `end` is exclusive."""

    id: str
    begin: int
    end: int
    reason: str

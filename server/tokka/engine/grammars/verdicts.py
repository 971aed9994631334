"""Cache of compiled and refused constraints, separate per tenant: a faster answer would reveal others' constraints.

Pure: the time is an argument.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

# Maximum bytes of all cached verdicts, and Python's overhead per verdict in bytes. An ordinary schema takes 2 KiB.
MAX_BYTES = 16 << 20
_ENTRY_BYTES = 1 << 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grammar for the engine, or the reason for a refusal and the place in the schema."""

    grammar: str = ""
    reason: str = ""
    at: str = ""
    # Time in seconds at which a refusal expires.
    until_s: float = math.inf

    @property
    def bytes(self) -> int:
        return _ENTRY_BYTES + len(self.grammar) + len(self.reason) + len(self.at)


@dataclass(slots=True)
class _Share:
    """One tenant's verdicts, least recently used first."""

    verdicts: OrderedDict[bytes, Verdict] = field(default_factory=OrderedDict)
    bytes: int = 0


class Verdicts:
    """The cache. If it is full, the tenant with the most cached bytes loses its least recently used verdicts."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}
        self.bytes = 0

    def find(self, tenant: str, key: bytes, now_s: float) -> Verdict | None:
        share = self._shares.get(tenant)
        verdict = share.verdicts.get(key) if share else None
        if share is None or verdict is None or now_s >= verdict.until_s:
            return None
        share.verdicts.move_to_end(key)
        return verdict

    def keep(self, tenant: str, key: bytes, verdict: Verdict) -> None:
        share = self._shares.setdefault(tenant, _Share())
        if former := share.verdicts.pop(key, None):
            self._count(share, -former.bytes)
        share.verdicts[key] = verdict
        self._count(share, verdict.bytes)
        while self.bytes > MAX_BYTES:
            largest = max(self._shares, key=lambda name: self._shares[name].bytes)
            _, dropped = self._shares[largest].verdicts.popitem(last=False)
            self._count(self._shares[largest], -dropped.bytes)
            if not self._shares[largest].verdicts:
                del self._shares[largest]

    def _count(self, share: _Share, count: int) -> None:
        share.bytes += count
        self.bytes += count

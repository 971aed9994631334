"""Cache of compiled and refused constraints, kept apart by tenant: a faster answer would tell what others compiled.

Pure: the time is an argument.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

# Bytes of all cached verdicts, each with what Python keeps beside its text. An ordinary schema takes 2 KiB.
MAX_BYTES = 16 << 20
_ENTRY_BYTES = 1 << 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grammar for the engine, or the reason for its refusal and the place in the schema."""

    grammar: str = ""
    reason: str = ""
    at: str = ""
    # When a refusal is to be reconsidered.
    until_s: float = math.inf

    @property
    def bytes(self) -> int:
        return _ENTRY_BYTES + len(self.grammar) + len(self.reason) + len(self.at)


@dataclass(slots=True)
class _Share:
    """One tenant's verdicts, the least recently used first."""

    verdicts: OrderedDict[bytes, Verdict] = field(default_factory=OrderedDict)
    bytes: int = 0


class Verdicts:
    """When it is full, the tenant with the most cached bytes loses its least recently used verdicts."""

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

"""Which replica a request goes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# How many requests more than the least loaded replica one may have and still get a request whose prefix it has cached:
# a share of the requests it runs at once, and at least this number.
_SHARE, _LEAST = 0.25, 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that could take the request. `leases`: requests that hold it; `max_running`: requests it runs at once.

    `cached`: the share of the request's prompt that it has probably cached, 0 to 1.
    """

    leases: int
    max_running: int
    cached: float


def choose(candidates: Sequence[Candidate]) -> int:
    """Return the index of the replica with the longest cached prefix within the load bound, else of the least loaded.

    `candidates`: at least one.
    """
    least = min(map(_load, candidates))

    def rank(at: int) -> tuple[float, float]:
        candidate = candidates[at]
        room = max(_SHARE, _LEAST / candidate.max_running)
        return (-candidate.cached if _load(candidate) <= least + room else 0.0, _load(candidate))

    return min(range(len(candidates)), key=rank)


def _load(candidate: Candidate) -> float:
    return candidate.leases / candidate.max_running

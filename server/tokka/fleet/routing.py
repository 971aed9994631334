"""Which replica a request goes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# How many requests more than the least loaded replica one may have and still get a request whose prefix it has cached:
# a share of what it runs at once, and at least this number.
_SHARE, _LEAST = 0.25, 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that could take the request. `requests`: how many hold it; `max_running`: how many run at once.

    `cached`: the share of the request's prompt that it has probably cached, 0 to 1.
    """

    requests: int
    max_running: int
    cached: float


def choose(candidates: Sequence[Candidate]) -> int:
    """Return the index of the replica with the longest cached prefix within the load bound, else of the least loaded.

    `candidates`: at least one.
    """
    least = min(map(_load, candidates))

    def rank(at: int) -> tuple[float, float]:
        candidate = candidates[at]
        return (-candidate.cached if _load(candidate) <= least + _room(candidate) else 0.0, _load(candidate))

    return min(range(len(candidates)), key=rank)


def stays(own: Candidate, admitted: int, others: Sequence[tuple[Candidate, int]]) -> bool:
    """Tell whether a request runs where it was prepared before it queued. A replica may have been added since.

    `admitted`, and the number of each other replica: requests of it that are not queued. `others`: at least one.
    """
    if admitted >= own.max_running:
        return all(running >= other.max_running for other, running in others)
    # Another replica has to prepare it again, so a small difference is not worth it. One with few admitted requests may
    # be preparing many.
    room = _room(own) if own.cached else _LEAST / own.max_running
    return all(
        _load(own) <= _load(other) + room or admitted / own.max_running <= running / other.max_running + room
        for other, running in others
    )


def _room(candidate: Candidate) -> float:
    return max(_SHARE, _LEAST / candidate.max_running)


def _load(candidate: Candidate) -> float:
    return candidate.requests / candidate.max_running

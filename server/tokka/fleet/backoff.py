"""Delays the next start of a model whose workers end while they start, or soon after."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Seconds of readiness after which the start of a worker counts as a success.
STEADY_S = 60.0
_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 60.0
# Maximum doublings, so that the power stays a small number.
_MOST_DOUBLINGS = 6


@dataclass(frozen=True, slots=True)
class Backoff:
    """Counts failed starts in a row. Each one doubles the delay of the next start, from 1 to 60 s."""

    failures: int = 0
    # Time of the next start at the earliest.
    not_before_s: float = -math.inf

    def after_end(self, ready_s: float, now_s: float) -> Backoff:
        """Record a worker that ended by itself. `ready_s`: seconds that it was ready; 0 if it never was."""
        if ready_s >= STEADY_S:
            return Backoff()
        delay_s = _FIRST_DELAY_S * 2 ** min(self.failures, _MOST_DOUBLINGS)
        return Backoff(self.failures + 1, now_s + min(_LONGEST_DELAY_S, delay_s))

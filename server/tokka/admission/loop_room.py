"""Room on the event loop, which all requests share: how long they spend there, and how many choices it can serve. Pure.

The costs of engine steps do not show this limit. A busy loop still delivers tokens at a good rate, but new requests
wait for several of its turns before admission sees them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Time from the socket to admission, and from the first token back to the socket, as a multiple of a timer's lateness.
# Measured at 400 requests a second.
_HOPS = 4.0
# Maximum lateness that counts. A longer one is a pause of the whole process, and not load.
_LONGEST_S = 0.25
# Weight of a new lateness in the average, which covers half a second.
_SHARE = 0.2
# Share of the TTFT target that requests may spend in the loop. With more, fewer choices run; with half of it, more.
_MOST_SHARE = 0.1
# Share of the time for which the loop's thread must have had a core. Below it, other processes make the loop late, and
# fewer choices would not help.
_BUSY = 0.5
# Observations over this share of the target until choices are limited: about a second. A burst on an idle server takes
# less.
_FEW = 10
# Factors on the maximum of running choices, ten times a second.
_SHRINK, _GROWTH = 0.96, 1.03


@dataclass(frozen=True, slots=True)
class LoopTime:
    """One observation of the loop."""

    # How late its timer came, in seconds.
    late_s: float = 0.0
    # Share of the time since the last observation in which its thread had a core.
    busy: float = 0.0


class LoopRoom:
    """Follows the lateness of a timer on the event loop."""

    def __init__(self) -> None:
        # Seconds that a request spends in the loop before and after admission.
        self.hops_s = 0.0
        # Maximum running choices; infinite while the loop is quick enough.
        self.most_choices = math.inf
        self._times_over = 0

    def observe(self, time: LoopTime, choices: int, max_running: int, ttft_s: float) -> None:
        """Record an observation, while `choices` of at most `max_running` were running."""
        self.hops_s += _SHARE * (_HOPS * min(time.late_s, _LONGEST_S) - self.hops_s)
        allowed_s = _MOST_SHARE * ttft_s
        self._times_over = self._times_over + 1 if self.hops_s > allowed_s and time.busy > _BUSY else 0
        if self._times_over > _FEW:
            self.most_choices = max(1.0, _SHRINK * min(self.most_choices, choices))
        elif self.hops_s < allowed_s / 2:
            grown = self.most_choices * _GROWTH + 1
            self.most_choices = grown if grown < max_running else math.inf

"""When those who run will have ended, and what they give back. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Departure:
    """An end that is expected: when, how long it will have taken from its first token on, and the choices and tokens of
    memory that it gives back."""

    at_s: float
    lasts_s: float
    choices: int
    kv_tokens: float


class Departures:
    def __init__(self, departures: Iterable[Departure]) -> None:
        ordered = sorted(departures, key=lambda one: one.at_s)
        self._times = [one.at_s for one in ordered]
        count = max(1, len(ordered))
        self._mean_end_s = sum(self._times) / count
        self._mean_lasts_s = sum(one.lasts_s for one in ordered) / count
        # Given back by then.
        self._choices = list(itertools.accumulate(one.choices for one in ordered))
        self._kv_tokens = list(itertools.accumulate(one.kv_tokens for one in ordered))

    def until_choices(self, choices: float, full: float, now_s: float) -> float:
        """Return in what time so many choices will have ended. `full`: as many as may run at once."""
        return self._until(self._choices, choices, full, now_s)

    def until_kv_tokens(self, tokens: float, full: float, now_s: float) -> float:
        """Return in what time so many tokens of memory will have been given back. `full`: all of it."""
        return self._until(self._kv_tokens, tokens, full, now_s)

    def _until(self, given_back: list[int] | list[float], wanted: float, full: float, now_s: float) -> float:
        if wanted <= 0 or not given_back:
            return 0.0
        at = bisect.bisect_left(given_back, wanted)
        # Those who come after them last as long as they do, and end before the longest of them.
        with_others_s = max(self._mean_end_s - now_s, self._mean_lasts_s * wanted / max(full, given_back[-1]))
        until_s = min(self._times[at] - now_s, with_others_s) if at < len(given_back) else with_others_s
        return max(0.0, until_s)

"""Predict when running requests end, and which choices and memory they free. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Departure:
    """An expected end: its time, the seconds since the first token, and the choices and tokens of memory it frees."""

    at_s: float
    lasts_s: float
    choices: int
    kv_tokens: float


class Departures:
    """The expected ends of all running requests."""

    def __init__(self, departures: Iterable[Departure]) -> None:
        ordered = sorted(departures, key=lambda one: one.at_s)
        self._times = [one.at_s for one in ordered]
        count = max(1, len(ordered))
        self._mean_end_s = sum(self._times) / count
        self._mean_lasts_s = sum(one.lasts_s for one in ordered) / count
        # Totals freed by each time in `_times`.
        self._choices = list(itertools.accumulate(one.choices for one in ordered))
        self._kv_tokens = list(itertools.accumulate(one.kv_tokens for one in ordered))

    def until_choices(self, choices: float, full: float, now_s: float) -> float:
        """Return the seconds until so many choices have ended. `full`: the maximum that may run at once."""
        return self._until(self._choices, choices, full, now_s)

    def until_kv_tokens(self, tokens: float, full: float, now_s: float) -> float:
        """Return the seconds until so many tokens of memory are freed. `full`: the whole memory."""
        return self._until(self._kv_tokens, tokens, full, now_s)

    def _until(self, given_back: list[int] | list[float], wanted: float, full: float, now_s: float) -> float:
        if wanted <= 0 or not given_back:
            return 0.0
        at = bisect.bisect_left(given_back, wanted)
        # Later requests last as long as the running ones on average, so some end before the longest running one.
        with_others_s = max(self._mean_end_s - now_s, self._mean_lasts_s * wanted / max(full, given_back[-1]))
        until_s = min(self._times[at] - now_s, with_others_s) if at < len(given_back) else with_others_s
        return max(0.0, until_s)

"""Lengths of prompts and completions: one length, or a range. Pure functions."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from tokka.bench.errors import BenchFailedError

MOST_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """Lengths in tokens, from the lowest to the highest. All doublings within the range are equally likely."""

    lowest: int
    highest: int

    def draw(self, chance: random.Random) -> int:
        if self.lowest == self.highest:
            return self.lowest
        return int(math.exp(chance.uniform(math.log(self.lowest), math.log(self.highest + 1))))


def span_of(option: str, text: str) -> Span:
    """Return the lengths in `64` or `20-8000`. Raises BenchFailedError that names the option."""
    low, dash, high = text.partition("-")
    try:
        span = Span(int(low), int(high if dash else low))
    except ValueError:
        span = Span(0, 0)
    if not 1 <= span.lowest <= span.highest <= MOST_TOKENS:
        raise BenchFailedError(f"{option} {text}: write tokens (64) or a range (20-8000); the maximum is {MOST_TOKENS}")
    return span

"""Compare two servers that run the same loads in turn. Pure functions.

A machine's speed drifts over hours. Figures are therefore compared within a round, in which the servers follow each
other, and their order changes from round to round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tokka.bench.figures import Figures
from tokka.bench.metrics import METRICS, Metric


def turns(rounds: int, servers: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of each round and the order of its servers: A B, B A, A B."""
    for place in range(rounds):
        order = list(range(servers))
        yield place, order if place % 2 == 0 else order[::-1]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of both servers under one load."""

    metric: Metric
    # Medians over the rounds.
    first: float
    second: float
    # First / second in each round that has both.
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def winner(self) -> str:
        """Return the server that was better in every round, or an empty text if there is none."""
        if not self.metric.better or not self.ratios:
            return ""
        if all(ratio > 1 for ratio in self.ratios):
            return "first" if self.metric.better == "higher" else "second"
        if all(ratio < 1 for ratio in self.ratios):
            return "second" if self.metric.better == "higher" else "first"
        return ""


def compare(first: Sequence[Figures], second: Sequence[Figures]) -> list[Comparison]:
    """Compare the rounds of one load, in their order, by every metric that both servers have."""
    found = []
    for metric in METRICS:
        pairs = [(metric.of(one), metric.of(other)) for one, other in zip(first, second, strict=True)]
        both = [(one, other) for one, other in pairs if one is not None and other is not None]
        if both:
            ratios = tuple(one / other for one, other in both if other)
            found.append(Comparison(metric, median(p[0] for p in both), median(p[1] for p in both), ratios))
    return found

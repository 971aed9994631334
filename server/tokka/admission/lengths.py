"""Predict the lengths of answers from finished ones, by tenant and by the request's token limit. Pure."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

# Buckets of lengths: one for each quarter of a doubling, up to half a million tokens.
_PER_DOUBLING = 4
_BUCKETS = 19 * _PER_DOUBLING
# Number of answers that a histogram remembers.
_MEMORY = 200.0
# Weights, in answers: of all tenants' lengths beside a tenant's own, and of the assumed lengths beside both.
_OF_ALL, _ASSUMED = 20.0, 2.0
# Number of answers from which lengths count as known. Each answer counts for its tenant and for all tenants.
_FEW = 20.0
# Assumed lengths, in tokens: public traces of services are about log-normal, with medians from 100 to 250 tokens.
_MEDIAN, _SPREAD = 150.0, 1.2
# Number of answers that the mean of one bucket goes back.
_MEAN_OF = 10.0
# Maximum number of histograms. The least recently used are dropped.
_MOST_HISTOGRAMS = 2000
# Number of answers after which a distribution is recomputed.
_RENEW_EVERY = 16


@dataclass(slots=True)
class _Histogram:
    counts: list[float] = field(default_factory=lambda: [0.0] * _BUCKETS)
    # Mean length in each bucket; 0 for an empty bucket.
    means: list[float] = field(default_factory=lambda: [0.0] * _BUCKETS)
    total: float = 0.0
    news: int = 0
    cumulated: list[float] | None = None

    def add(self, tokens: int) -> None:
        if self.total >= _MEMORY:
            keep = 1 - 1 / _MEMORY
            self.counts = [count * keep for count in self.counts]
            self.total *= keep
        at = _bucket(tokens)
        self.counts[at] += 1.0
        self.total += 1.0
        self.means[at] += (tokens - self.means[at]) / min(self.counts[at], _MEAN_OF) if self.means[at] else tokens
        self.news += 1
        if self.news >= min(_RENEW_EVERY, self.total / 4):
            self.cumulated, self.news = None, 0


class AnswerLengths:
    """The distributions of lengths. A length is the number of tokens of one choice."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[str | None, int], _Histogram] = OrderedDict()

    def add(self, tenant: str, most: int, tokens: int) -> None:
        """Record that an answer limited to `most` tokens has ended by itself after `tokens`."""
        for key in ((tenant, _class(most)), (None, _class(most))):
            self._histogram(key).add(tokens)

    def are_known(self, tenant: str, most: int) -> bool:
        """Return whether enough answers of this kind have been seen, from this tenant or others."""
        return self._histogram((tenant, _class(most))).total + self._histogram((None, _class(most))).total >= _FEW

    def draw(self, tenant: str, most: int, given: int, quantiles: Sequence[float]) -> list[int]:
        """Return possible final lengths, in tokens, of an answer that has `given` tokens so far.

        They are the quantiles of the answers of its kind that became longer than `given`.
        """
        if given + 1 >= most:
            return [most] * len(quantiles)
        cumulated, means = self._cumulated(tenant, most)
        before = _share_below(cumulated, given + 1)
        left = 1.0 - before
        lengths = (_length_at(cumulated, means, before + quantile * left) for quantile in quantiles)
        return [given + 1 if length <= given else min(most, length) for length in lengths]

    def _cumulated(self, tenant: str, most: int) -> tuple[list[float], list[float]]:
        own, others = self._histogram((tenant, _class(most))), self._histogram((None, _class(most)))
        if own.cumulated is None:
            own.cumulated = _cumulate(own, others, most)
        return own.cumulated, own.means

    def _histogram(self, key: tuple[str | None, int]) -> _Histogram:
        if (found := self._of.get(key)) is None:
            found = self._of[key] = _Histogram()
            if len(self._of) > _MOST_HISTOGRAMS:
                self._of.popitem(last=False)
        else:
            self._of.move_to_end(key)
        return found


def _log_normal(tokens: float) -> float:
    """Return the assumed share of answers that are shorter."""
    return 0.5 * (1 + math.erf(math.log(tokens / _MEDIAN) / (_SPREAD * math.sqrt(2))))


_PRIOR = [
    _log_normal(2 ** ((at + 1) / _PER_DOUBLING)) - _log_normal(2 ** (at / _PER_DOUBLING)) for at in range(_BUCKETS)
]


def _class(most: int) -> int:
    """Return the kind of a request: limits between the same two powers of two are of one kind."""
    return most.bit_length()


def _bucket(tokens: int) -> int:
    return min(_BUCKETS - 1, int(_PER_DOUBLING * math.log2(max(1, tokens))))


def _cumulate(own: _Histogram, others: _Histogram, most: int) -> list[float]:
    share_of_all = min(_OF_ALL, others.total) / others.total if others.total else 0.0
    counts = [mine + share_of_all * theirs for mine, theirs in zip(own.counts, others.counts, strict=True)]
    last = _bucket(most)
    # The assumed lengths count for less as more answers are known.
    assumed = rest = _ASSUMED / (1 + (own.total + share_of_all * others.total) / _ASSUMED)
    for at in range(last):
        counts[at] += assumed * _PRIOR[at]
        rest -= assumed * _PRIOR[at]
    counts[last] += rest
    total = sum(counts)
    return [value / total for value in itertools.accumulate(counts)]


def _share_below(cumulated: Sequence[float], tokens: int) -> float:
    """Return the share of answers shorter than this, with each bucket spread evenly on a logarithmic scale."""
    place = min(_BUCKETS - 1e-9, _PER_DOUBLING * math.log2(max(1, tokens)))
    at = int(place)
    below = cumulated[at - 1] if at else 0.0
    return below + (place - at) * (cumulated[at] - below)


def _length_at(cumulated: Sequence[float], means: Sequence[float], share: float) -> int:
    at = min(_BUCKETS - 1, bisect.bisect_left(cumulated, share))
    if means[at]:
        return round(means[at])
    below = cumulated[at - 1] if at else 0.0
    width = cumulated[at] - below
    inside = (share - below) / width if width > 0 else 1.0
    return int(2 ** ((at + min(1.0, inside)) / _PER_DOUBLING))

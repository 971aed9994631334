"""The cosine of pairs of vectors that arrive in any order."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable
from operator import mul


class Cosines:
    """The cosine of each pair of prompts, computed as soon as both vectors are there."""

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        self._pairs_of: defaultdict[int, list[tuple[int, tuple[int, int]]]] = defaultdict(list)
        self.values: list[float] = []
        for place, pair in enumerate(pairs):
            self.values.append(0.0)
            for prompt in set(pair):
                self._pairs_of[prompt].append((place, pair))
        self._vectors: dict[int, tuple[array[float], float]] = {}

    def add(self, prompt: int, vector: array[float]) -> None:
        """Take the vector of a prompt."""
        self._vectors[prompt] = vector, math.sqrt(sum(map(mul, vector, vector)))
        for place, (left, right) in self._pairs_of[prompt]:
            if left in self._vectors and right in self._vectors:
                self.values[place] = _cosine(self._vectors[left], self._vectors[right])


def _cosine(left: tuple[array[float], float], right: tuple[array[float], float]) -> float:
    (first, first_length), (second, second_length) = left, right
    lengths = first_length * second_length
    # Rounding may exceed the range by a little.
    return max(-1.0, min(1.0, sum(map(mul, first, second)) / lengths)) if lengths else 0.0

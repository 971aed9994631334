"""The time of an engine step: a cost formula, and a learner that fits it to measured steps. Pure.

A step takes a fixed time, plus a time per decoding choice, per prompt token computed in it, and per token of context
that the decoding choices attend to. The learner keeps the mean time of each kind of step and fits the four parts to
these means. It never forgets a mean, so an hour without prompts does not change the known cost of a prompt. The current
speed of the machine is one factor for all kinds, which adapts within seconds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

# Number of steps after which the learner trusts a kind's mean. Until then, the mean is the median of the steps.
_FEW = 5
# Number of steps that a mean covers. It is large because the mean describes the engine, not the last minutes.
_MEMORY_STEPS = 2000
# Seconds of work that the speed factor covers.
_SPEED_MEMORY_S = 0.8
# Maximum ratio between measured and expected time. A step beyond it was disturbed, and counts as this ratio.
_LARGEST_RATIO = 2.0
# Maximum number of steps between two fits. At the beginning fits are more frequent, because each step adds information.
_FIT_EVERY = 64
# Ridge terms, relative to the fitted values. They decide between parts that the measured steps cannot tell apart.
_RIDGE = (1e-6, 1e-5, 1e-5, 1e-2)
_PARTS = len(_RIDGE)
_CHOICES = [parts for size in range(1, _PARTS + 1) for parts in itertools.combinations(range(_PARTS), size)]


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Learnt costs of one step in seconds. `pace`: the current factor on them."""

    fixed_s: float
    per_choice_s: float = 0.0
    per_prompt_token_s: float = 0.0
    per_context_token_s: float = 0.0
    pace: float = 1.0
    # Tokens per decoding choice and step: more than 1 with speculative decoding.
    tokens_per_step: float = 1.0
    # Measured time divided by the formula's time, for batches of 1, of 2 and 3, of 4 to 7 choices and so on.
    stairs: tuple[float, ...] = ()

    def step_s(self, decoding: float, prompt_tokens: float = 0.0, context_tokens: float = 0.0) -> float:
        """Return the seconds of a step with this work."""
        decode_s = self.fixed_s + self.per_choice_s * decoding + self.per_context_token_s * context_tokens
        return self.pace * (decode_s * self._stair(decoding) + self.per_prompt_token_s * prompt_tokens)

    def prompt_s(self, tokens: float) -> float:
        """Return the additional seconds of a step that also computes these prompt tokens."""
        return self.pace * self.per_prompt_token_s * tokens

    def token_s(self, decoding: float, context_tokens: float = 0.0) -> float:
        """Return the seconds per token of a choice while all steps only decode."""
        return self.step_s(decoding, 0.0, context_tokens) / self.tokens_per_step

    def _stair(self, decoding: float) -> float:
        if not self.stairs:
            return 1.0
        return self.stairs[min(len(self.stairs), max(1, int(decoding).bit_length())) - 1]


@dataclass(slots=True)
class _Kind:
    """Steps of similar size: their mean work, and their mean seconds at pace 1."""

    count: int = 0
    decoding: float = 0.0
    prompt_tokens: float = 0.0
    context_tokens: float = 0.0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)

    def add(self, decoding: int, prompt_tokens: int, context_tokens: int, seconds: float) -> None:
        self.count += 1
        share = 1 / min(self.count, _MEMORY_STEPS)
        self.decoding += share * (decoding - self.decoding)
        self.prompt_tokens += share * (prompt_tokens - self.prompt_tokens)
        self.context_tokens += share * (context_tokens - self.context_tokens)
        if self.count <= _FEW:
            self.first.append(seconds)
            self.seconds = statistics.median(self.first)
        else:
            # A geometric mean, like the mean of the pace. With different means the two would drift apart forever.
            self.seconds *= _clipped(seconds / self.seconds) ** share

    @property
    def parts(self) -> tuple[float, float, float, float]:
        return 1.0, self.decoding, self.prompt_tokens, self.context_tokens


class StepCostLearner:
    """Learns the step costs of one copy of the model."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, int, int], _Kind] = {}
        self._costs: StepCosts | None = None
        # The same at the current pace, from its first use after a step.
        self._current: StepCosts | None = None
        self._log_pace = 0.0
        self._tokens_per_step = 1.0
        self._steps = 0
        self._next_fit = 1

    @property
    def costs(self) -> StepCosts | None:
        """The costs learnt so far. None before the first step."""
        if self._costs is None:
            return None
        if self._current is None:
            # Each request asks several times.
            self._current = replace(self._costs, pace=math.exp(self._log_pace), tokens_per_step=self._tokens_per_step)
        return self._current

    def add(
        self, seconds: float, decoding: int, prompt_tokens: int, context_tokens: int = 0, generated: int | None = None
    ) -> None:
        """Learn from a step that took `seconds`.

        `decoding`: its decoding choices; `context_tokens`: their context; `generated`: their new tokens (None: one
        each). `prompt_tokens`: the prompt tokens it computed.
        """
        key = (decoding.bit_length(), prompt_tokens.bit_length(), (context_tokens // 1024).bit_length())
        kind = self._kinds.setdefault(key, _Kind())
        # admission/design 8.7
        self._follow_pace(seconds, kind, decoding, prompt_tokens, context_tokens)
        kind.add(decoding, prompt_tokens, context_tokens, seconds / math.exp(self._log_pace))
        if decoding and generated is not None:
            self._tokens_per_step += (generated / decoding - self._tokens_per_step) / min(self._steps + 1, 256)
        self._steps += 1
        self._current = None
        # A new kind may reveal the cost of a part for the first time, for example a batch after single choices.
        if self._steps >= self._next_fit or kind.count in (1, _FEW):
            self._next_fit = self._steps + min(self._steps, _FIT_EVERY)
            self._costs = fit(list(self._kinds.values()))

    def _follow_pace(self, seconds: float, kind: _Kind, decoding: int, prompt_tokens: int, context_tokens: int) -> None:
        if self._costs is None:
            return
        # The mean of the step's kind is more accurate than the formula, which smooths the jumps between batch sizes.
        formula_s = self._costs.step_s(decoding, prompt_tokens, context_tokens)
        expected_s = kind.seconds if kind.count >= _FEW else formula_s
        if expected_s <= 0:
            # The cost of this step's part is not known yet.
            return
        # For a kind with few steps, a deviation is a weak sign of the machine's speed.
        trust = 1.0 if kind.count >= _FEW else 0.2
        expected_s *= math.exp(self._log_pace)
        # Weight by the expected time. With the measured time, slow steps would count more than fast ones.
        share = trust * (1 - math.exp(-expected_s / _SPEED_MEMORY_S))
        self._log_pace += share * math.log(_clipped(seconds / expected_s))


def _clipped(ratio: float) -> float:
    return min(_LARGEST_RATIO, max(1 / _LARGEST_RATIO, ratio))


def fit(kinds: Sequence[_Kind]) -> StepCosts:
    """Fit the parts to the means by relative error. No part is negative."""
    fixed_s, per_choice_s, per_prompt_token_s, per_context_token_s = _least_squares(kinds)
    costs = StepCosts(fixed_s, per_choice_s, per_prompt_token_s, per_context_token_s)
    return replace(costs, stairs=_stairs(kinds, costs))


def _least_squares(kinds: Sequence[_Kind]) -> list[float]:
    """Solve the normal equations, with each part scaled to its own size and no part below zero.

    The best nonnegative solution is also the best solution for its own positive parts. So solve for each of the fifteen
    subsets of parts, and return the solution without a negative part that explains most.
    """
    rows = [([part / kind.seconds for part in kind.parts], min(kind.count, 32)) for kind in kinds]
    scales = [math.sqrt(sum(weight * row[at] ** 2 for row, weight in rows)) or 1.0 for at in range(_PARTS)]
    matrix = [[_RIDGE[i] if i == j else 0.0 for j in range(_PARTS)] for i in range(_PARTS)]
    right = [0.0] * _PARTS
    for row, weight in rows:
        scaled = [value / scale for value, scale in zip(row, scales, strict=True)]
        for i in range(_PARTS):
            right[i] += weight * scaled[i]
            for j in range(_PARTS):
                matrix[i][j] += weight * scaled[i] * scaled[j]
    best, explained = [0.0] * _PARTS, 0.0
    for active in _CHOICES:
        found = _solve([[*(matrix[i][j] for j in active), right[i]] for i in active])
        gain = sum(right[part] * value for part, value in zip(active, found, strict=True))
        if gain > explained and min(found) >= 0:
            best, explained = [0.0] * _PARTS, gain
            for part, value in zip(active, found, strict=True):
                best[part] = value
    return [value / scale for value, scale in zip(best, scales, strict=True)]


def _solve(matrix: list[list[float]]) -> list[float]:
    """Solve by Gaussian elimination with pivots. The last column is the right side. The ridge keeps it regular."""
    size = len(matrix)
    for at in range(size):
        pivot = max(range(at, size), key=lambda row: abs(matrix[row][at]))
        matrix[at], matrix[pivot] = matrix[pivot], matrix[at]
        for row in range(size):
            if row != at:
                factor = matrix[row][at] / matrix[at][at]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[at], strict=True)]
    return [matrix[at][size] / matrix[at][at] for at in range(size)]


def _stairs(kinds: Sequence[_Kind], costs: StepCosts) -> tuple[float, ...]:
    """Return the ratio of measured to formula time for each doubling of the decoding choices."""
    measured: dict[int, list[tuple[float, int]]] = {}
    for kind in kinds:
        if kind.prompt_tokens < 1 <= kind.decoding and kind.count >= _FEW:
            formula_s = costs.step_s(kind.decoding, 0.0, kind.context_tokens)
            if formula_s <= 0:
                continue
            weight = min(kind.count, 32)
            measured.setdefault(int(kind.decoding).bit_length(), []).append((kind.seconds / formula_s, weight))
    if not measured:
        return ()
    ratios = {
        size: sum(ratio * weight for ratio, weight in seen) / sum(weight for _, weight in seen)
        for size, seen in measured.items()
    }
    stairs, last = [], 1.0
    for size in range(1, max(ratios) + 1):
        last = ratios.get(size, last)
        stairs.append(last)
    # Beyond the largest measured batch, the formula holds as it is.
    return (*stairs, 1.0)

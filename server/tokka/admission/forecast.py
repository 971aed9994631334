"""Durations on this engine, computed from the costs of its steps. Pure; in seconds, choices and tokens."""

from __future__ import annotations

import math

from tokka.engine_facts import ModelInfo
from tokka.step_costs import StepCosts

# Minimum share of its time that an engine is assumed to have for prompts.
_LEAST_SHARE = 0.05


class Forecast:
    """Estimates durations. Until the costs of steps are known, all durations are 0."""

    def __init__(self) -> None:
        self.costs: StepCosts | None = None
        self.describe(ModelInfo(0, 0, "", "", False, max_running=1))

    def describe(self, model: ModelInfo) -> None:
        """Apply the engine's capacity."""
        self.model = model
        tokens = model.step_tokens
        # Maximum tokens of one prompt that a step computes beside others.
        self.chunk: float = math.inf if tokens is None else max(1, tokens // 2)
        self.learn(model.costs, 0.0)

    def learn(self, costs: StepCosts | None, context_tokens: float) -> None:
        """Update the costs of steps, and the mean tokens of context of one choice."""
        self.costs = costs or self.costs
        self._context_tokens = context_tokens
        self._token_s: dict[int, float] = {}

    def token_s(self, choices: int) -> float:
        """Return the seconds a choice waits for its next token if so many decode and no prompt is computed."""
        known = self._token_s.get(choices)
        if known is not None:
            return known
        if self.costs is None:
            return 0.0
        here = choices / self.model.copies
        token_s = self._token_s[choices] = self.costs.token_s(here, here * self._context_tokens)
        return token_s

    def prompt_s(self, tokens: float) -> float:
        """Return the seconds that these prompt tokens add to the steps that compute them."""
        return self.costs.prompt_s(tokens / self.model.copies) if self.costs else 0.0

    def own_prompt_s(self, tokens: float, choices: int) -> float:
        """Return the seconds from the start of a prompt to its first token, beside so many choices."""
        steps = math.ceil(tokens / self.chunk) if math.isfinite(self.chunk) else 1
        return steps * self.token_s(choices) + self.prompt_s(tokens)

    def prompt_share(self, choices: int, token_goal_s: float) -> float:
        """Return the long-run share of the engine's time for prompts, if each choice gets a token in `token_goal_s`."""
        full = self.full_share(choices)
        if math.isinf(token_goal_s):
            return full
        return max(_LEAST_SHARE, min(full, 1.0 - self.token_s(choices) / token_goal_s))

    def full_share(self, choices: int) -> float:
        """Return the share of the engine's time for prompts when every step is full of them."""
        if self.model.step_tokens is None or self.costs is None:
            return 1.0
        prompts_s = self.prompt_s(self.model.step_tokens)
        return max(_LEAST_SHARE, prompts_s / (prompts_s + self.token_s(choices)))

    def most_choices(self, token_goal_s: float) -> int:
        """Return the maximum choices that can decode with a token in `token_goal_s` each; at least one."""
        most = self.model.max_running
        if math.isinf(token_goal_s) or self.token_s(most) <= token_goal_s:
            return most
        low, high = 1, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.token_s(middle) <= token_goal_s else (low, middle)
        return low

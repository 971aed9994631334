"""A request on its way through admission: what it weighs, and when things happened to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# What an answer without any limit is taken for.
NO_LIMIT = 1 << 19


@dataclass(eq=False, slots=True)
class Ticket:
    """Everything is in seconds of one monotonic clock, and in choices or tokens."""

    tenant: str
    choices: int
    arrived_s: float
    # Of all its prompts; and those of them that the engine probably has in its prefix cache.
    prompt_tokens: int = 0
    cached_tokens: int = 0
    # The most tokens of one choice; with `is_exact` it will be as many.
    most_tokens: int = NO_LIMIT
    is_exact: bool = False
    # Among its tenant's own requests only; lower runs sooner.
    priority: int = 0
    # Nothing else is admitted for so many seconds from its admission, or until it ends.
    alone_s: float = 0.0

    # Filled in by the policy. When its first token was predicted to come, as it was let in, and from then on the time
    # for each token; infinite where nothing is known.
    predicted_first_s: float = math.inf
    predicted_pace_s: float = math.inf
    # It was let in to wait, and when it has to start at the latest for its first token to keep the target.
    has_waited: bool = False
    latest_start_s: float = math.inf
    # Its place in the distribution of answers' lengths: between 0 and 1.
    quantile: float = 0.5
    # Lengths that one of its choices may have in the end, in order, each as likely as the others.
    draws: Sequence[int] | None = None
    # Infinite while it waits.
    started_s: float = math.inf
    # When its prompts will be computed, as predicted at its start.
    ready_s: float = math.inf
    first_token_s: float | None = None
    # Given to its reader, of all choices together, and when the last ones were.
    tokens: int = 0
    last_token_s: float = 0.0

    @property
    def uncached_tokens(self) -> int:
        return max(1, self.prompt_tokens - self.cached_tokens)

    @property
    def given(self) -> int:
        """Tokens of one choice so far."""
        return self.tokens // self.choices

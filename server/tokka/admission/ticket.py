"""A request in admission: its size and the times of its events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Maximum tokens assumed for an answer without any limit.
NO_LIMIT = 1 << 19


@dataclass(eq=False, slots=True)
class Ticket:
    """One request. Times are in seconds of one monotonic clock, sizes in choices or tokens."""

    tenant: str
    choices: int
    arrived_s: float
    # Tokens of all its prompts, and how many of them are probably in the engine's prefix cache.
    prompt_tokens: int = 0
    cached_tokens: int = 0
    # Maximum tokens of one choice; with `is_exact` the choice will have exactly as many.
    most_tokens: int = NO_LIMIT
    is_exact: bool = False
    # Order among its tenant's own requests only; lower runs sooner.
    priority: int = 0
    # Seconds from its start for which no other request is admitted, unless it ends before.
    alone_s: float = 0.0

    # The policy fills in the fields from here on. Predicted time of its first token, made when it was let in, and
    # predicted seconds for each later token; infinite if unknown.
    predicted_first_s: float = math.inf
    predicted_pace_s: float = math.inf
    # Whether it had to wait, and the latest start at which its first token meets the TTFT target.
    has_waited: bool = False
    latest_start_s: float = math.inf
    # Its quantile in the distribution of answers' lengths, between 0 and 1.
    quantile: float = 0.5
    # Final lengths that one of its choices may have, in order, all equally likely.
    draws: Sequence[int] | None = None
    # Time of its start; infinite while it is queued.
    started_s: float = math.inf
    # Time at which its prompts will be computed, predicted at its start.
    ready_s: float = math.inf
    first_token_s: float | None = None
    # Tokens of all choices that the client was given, and the time of the last ones.
    tokens: int = 0
    last_token_s: float = 0.0

    @property
    def uncached_tokens(self) -> int:
        return max(1, self.prompt_tokens - self.cached_tokens)

    @property
    def given(self) -> int:
        """Tokens of one choice so far."""
        return self.tokens // self.choices

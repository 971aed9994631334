"""A request on its way through admission: what it weighs, and when things happened to it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Ticket:
    """Filled in by the policy; everything is in seconds of one monotonic clock, and in choices or tokens."""

    tenant: str
    choices: int
    arrived_s: float
    prompt_tokens: int = 0
    # Among its tenant's own requests only; lower runs sooner.
    priority: int = 0
    # Nothing else is admitted for so many seconds from its admission, or until it ends.
    alone_s: float = 0.0
    # Later than this its first token would miss the target.
    latest_start_s: float = math.inf
    # How many could run when it began to wait: a limit that falls meanwhile is for those who come later.
    promised_limit: int = 0
    # Infinite while it waits.
    admitted_s: float = math.inf
    # Tokens of prompts that were being computed then, its own among them.
    prefilling: int = 0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    # It is given no tokens because its client does not read: no measure of the engine.
    is_stalled: bool = False
    was_stalled: bool = False

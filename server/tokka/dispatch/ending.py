"""The end of a request for its key: usage is counted, then the reservation goes back."""

from __future__ import annotations

import time
from collections.abc import Callable

from tokka.admission.allowance import Allowance
from tokka.core import Outcome, RequestRecord

# Refusals of the server. A request that ends with one of these, before it had a slot, costs its key nothing.
_REFUSALS = frozenset({401, 403, 429, 500, 503, 504})


def finish(
    record: RequestRecord, allowance: Allowance | None, status: int, count: Callable[[RequestRecord], None]
) -> None:
    """Count a generation's usage, then return the unused tokens to its key's limits. Call once per request.

    In this order: tokens that are used but not counted yet must stay reserved, or the key could use them twice.
    `status`: HTTP status of the response, 0 if none was begun. `count`: adds the record to the usage.
    """
    if record.endpoint:
        count(record)
    if allowance is not None:
        served = record.queue_s is not None or status not in _REFUSALS
        allowance.settle(record.prompt_tokens + record.completion_tokens, time.monotonic(), served=served)


def outcome_of(status: int) -> Outcome:
    """Return the outcome of a request that was refused or failed with this HTTP status."""
    if status in (401, 403, 429, 503):
        return "rejected"
    if status == 504:
        return "timeout"
    return "invalid" if 400 <= status < 500 else "error"

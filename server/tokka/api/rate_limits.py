"""OpenAI's rate limit headers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tokka.admission.allowance import Gauge


def rate_limit_headers(gauges: Mapping[str, Gauge]) -> list[tuple[bytes, bytes]]:
    """Return `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` for each limit of the key."""
    return [
        (f"x-ratelimit-{what}-{name}".encode(), value.encode())
        for name, gauge in gauges.items()
        for what, value in (
            ("limit", str(gauge.limit)),
            ("remaining", str(gauge.remaining)),
            ("reset", duration(gauge.reset_s)),
        )
    ]


def duration(seconds: float) -> str:
    """Return a duration as OpenAI writes it: `0s`, `17ms`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds % 1000 and milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds / 1000, 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"

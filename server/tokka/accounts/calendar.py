"""Hours of usage, and the days and months of quotas, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from tokka.store.rows import Periods

HOUR_S = 3600
DAY_S = 86400


def hour_of(now_s: float) -> int:
    return int(now_s) // HOUR_S * HOUR_S


def periods_of(now_s: float) -> Periods:
    """Return when the day and the month of this time began, in seconds since 1970."""
    day = int(now_s) // DAY_S * DAY_S
    return Periods(day, day - (datetime.fromtimestamp(day, UTC).day - 1) * DAY_S)

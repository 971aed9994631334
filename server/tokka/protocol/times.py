"""Times as people write them: `2026-12-31`, `2026-12-31T18:00Z`, or a distance: `30d`, `12h`. All in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

# The form of a moment. The calendar is checked later.
MOMENT = r"^(20[0-9]{2}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}Z?)?|[1-9][0-9]{0,3}[dhm])$"
# Accepted years. The databases hold more.
_YEARS = range(2000, 2100)
_UNITS = {"d": 86400, "h": 3600, "m": 60}


def parse_duration(text: str) -> timedelta | None:
    """Return the duration of `30d` or `12h`; None for any other text."""
    if not re.fullmatch(r"[0-9]{1,4}[dhm]", text):
        return None
    return timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])


def parse_time(text: str, now: datetime, *, ahead: bool) -> datetime:
    """Return the moment. `ahead`: a distance counts from now into the future, else into the past.

    Raises ValueError with the reason.
    """
    if (distance := parse_duration(text)) is not None:
        return now + distance if ahead else now - distance
    if not re.fullmatch(MOMENT, text):
        raise ValueError(f"{text[:40]!r} is not a time; write 2026-12-31, 2026-12-31T18:00Z, 30d or 12h")
    try:
        return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{text!r} is not in the calendar") from None


def zoned_moment_of(text: str, now: datetime) -> datetime:
    """Return the moment of an ISO 8601 time with its zone, in UTC, or of a distance ahead of now; whole seconds.

    Raises ValueError with the reason.
    """
    if (distance := parse_duration(text)) is not None:
        return (now + distance).replace(microsecond=0)
    shown = repr(text[:40])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{shown} is not a time; write 2026-12-31T18:00+02:00, 2026-12-31T16:00Z, 30d or 12h"
        ) from None
    if moment.tzinfo is None:
        raise ValueError(f"{shown} has no time zone; write 2026-12-31T18:00+02:00 or 2026-12-31T16:00Z")
    if moment.year not in _YEARS:
        raise ValueError(f"{shown} is not between {_YEARS[0]} and {_YEARS[-1]}")
    return moment.astimezone(UTC).replace(microsecond=0)


def format_iso(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 in UTC, to the second."""
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"

"""Downtimes in memory: windows in which the server refuses new requests. They stay valid while the database is down."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from tokka.downtime import Downtime
from tokka.errors import Maintenance
from tokka.protocol.times import format_iso

MAX_REASON_CHARS = 500


def new_downtime(begin: int, end: int, reason: str, now: int) -> Downtime:
    """Return a downtime. Raises ValueError with a message that begins with the name of the wrong field."""
    if end <= begin:
        raise ValueError("end: it must be after the begin")
    if end <= now:
        raise ValueError("end: it must be in the future")
    # One line, because error messages and tables contain it.
    if not 0 < len(reason) <= MAX_REASON_CHARS or not reason.isprintable() or reason != reason.strip():
        raise ValueError(f"reason: write one line of 1 to {MAX_REASON_CHARS} characters")
    return Downtime(f"down_{secrets.token_hex(4)}", begin, end, reason)


def downtime_object(downtime: Downtime, now_s: float) -> dict[str, str]:
    """Return the downtime as `tokka downtime` shows it."""
    status = "over" if downtime.end <= now_s else "under way" if downtime.begin <= now_s else "to come"
    begin, end = format_iso(downtime.begin), format_iso(downtime.end)
    return {"id": downtime.id, "begin": begin, "end": end, "status": status, "reason": downtime.reason}


class Downtimes:
    """The downtimes in memory. `now_s`: seconds since 1970, in UTC."""

    def __init__(self) -> None:
        self._known: tuple[Downtime, ...] = ()

    def apply(self, downtimes: Iterable[Downtime]) -> None:
        """Replace all known downtimes."""
        self._known = tuple(downtimes)

    def not_over(self, now_s: float) -> list[Downtime]:
        """Return current and future downtimes, in order of their begin."""
        return [downtime for downtime in self._known if now_s < downtime.end]

    def current(self, now_s: float) -> Downtime | None:
        """Return the current downtime. If several overlap, return the one that ends last."""
        under_way = [downtime for downtime in self._known if downtime.begin <= now_s < downtime.end]
        return max(under_way, key=lambda downtime: downtime.end, default=None)

    def check(self, now_s: float) -> None:
        """Raise Maintenance during a downtime."""
        if downtime := self.current(now_s):
            raise Maintenance(
                format_iso(downtime.begin), format_iso(downtime.end), downtime.reason, downtime.end - now_s
            )

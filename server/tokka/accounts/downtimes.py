"""The windows in which nothing new may run, in memory: what a database that is down says is what it said last."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from tokka.core import Downtime
from tokka.errors import Maintenance
from tokka.protocol.moments import iso_of

MAX_REASON_CHARS = 500


def new_downtime(begin: int, end: int, reason: str, now: int) -> Downtime:
    """Raises ValueError that says what is wrong, beginning with the name of the field."""
    if end <= begin:
        raise ValueError("end: it must be after the begin")
    if end <= now:
        raise ValueError("end: it must be in the future")
    # One line: it is part of messages and lists.
    if not 0 < len(reason) <= MAX_REASON_CHARS or not reason.isprintable() or reason != reason.strip():
        raise ValueError(f"reason: write one line of 1 to {MAX_REASON_CHARS} characters")
    return Downtime(f"down_{secrets.token_hex(4)}", begin, end, reason)


def downtime_object(downtime: Downtime, now_s: float) -> dict[str, str]:
    """Return it as `tokka downtime` shows it."""
    status = "over" if downtime.end <= now_s else "under way" if downtime.begin <= now_s else "to come"
    begin, end = iso_of(downtime.begin), iso_of(downtime.end)
    return {"id": downtime.id, "begin": begin, "end": end, "status": status, "reason": downtime.reason}


class Downtimes:
    def __init__(self) -> None:
        self._known: tuple[Downtime, ...] = ()

    def apply(self, downtimes: Iterable[Downtime]) -> None:
        """Take over what there is now."""
        self._known = tuple(downtimes)

    def not_over(self, now_s: float) -> list[Downtime]:
        """Return those under way and to come, in order of their begin."""
        return [downtime for downtime in self._known if now_s < downtime.end]

    def current(self, now_s: float) -> Downtime | None:
        """Return the one under way; of several the one that ends last, since until then nothing runs."""
        under_way = [downtime for downtime in self._known if downtime.begin <= now_s < downtime.end]
        return max(under_way, key=lambda downtime: downtime.end, default=None)

    def check(self, now_s: float) -> None:
        """Raise Maintenance if one is under way."""
        if downtime := self.current(now_s):
            raise Maintenance(iso_of(downtime.begin), iso_of(downtime.end), downtime.reason, downtime.end - now_s)

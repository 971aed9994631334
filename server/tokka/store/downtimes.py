"""Rows of downtimes. There are few, so a server reads all current and future ones."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select

from tokka.downtime import Downtime
from tokka.store.tables import DOWNTIMES

# Maximum rows of a read, earliest begin first. Servers read them twice a second, and no operator plans this many.
MAX_ROWS = 1000


def not_over(connection: Connection, now: int) -> list[Downtime]:
    """Return current and future downtimes, in order of their begin."""
    return _read(connection, select(DOWNTIMES).where(DOWNTIMES.c.end_at > now).limit(MAX_ROWS))


def all_of_them(connection: Connection) -> list[Downtime]:
    """Return all downtimes, past ones included, in order of their begin."""
    return _read(connection, select(DOWNTIMES))


def add(connection: Connection, downtime: Downtime) -> None:
    values = {"id": downtime.id, "begin_at": downtime.begin, "end_at": downtime.end, "reason": downtime.reason}
    connection.execute(insert(DOWNTIMES).values(values))


def remove(connection: Connection, downtime_id: str) -> bool:
    """Remove a downtime. Return False if the id does not exist."""
    return connection.execute(delete(DOWNTIMES).where(DOWNTIMES.c.id == downtime_id)).rowcount > 0


def _read(connection: Connection, query: Select[Any]) -> list[Downtime]:
    found = connection.execute(query.order_by(DOWNTIMES.c.begin_at, DOWNTIMES.c.id))
    return [Downtime(row.id, row.begin_at, row.end_at, row.reason) for row in found]

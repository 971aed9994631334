"""Planned downtimes."""

from __future__ import annotations

from tokka.downtime import Downtime
from tokka.store import downtimes
from tokka.store.database import Database


def planned_downtime(database: Database, begin: int, **fields: str) -> Downtime:
    downtime = Downtime(f"down_{begin}", begin, begin + 100, fields.get("reason", "new GPUs"))
    with database.transaction(write=True) as connection:
        downtimes.add(connection, downtime)
    return downtime


def not_over(database: Database, now: int) -> list[Downtime]:
    with database.transaction(write=False) as connection:
        return downtimes.not_over(connection, now)

"""Read the rows of a damaged SQLite file that are still readable."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from tokka.store.tables import DOWNTIMES, KEYS, STATE, USAGE, WRITERS

# Not the responses: they may be larger than the memory.
_TABLES = (KEYS, USAGE, WRITERS, DOWNTIMES)
# Maximum gap between two readable rows. A page holds some tens of rows, so a longer gap is the table's end.
_MAX_GAP = 2000


@dataclass(slots=True)
class Salvage:
    """Rows by table. `lost`: the tables that were not completely readable."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    @property
    def has_keys(self) -> bool:
        """Whether some keys, or the whole table of keys, were readable. The table may be empty."""
        return bool(self.rows.get("keys")) or ("keys" in self.rows and "keys" not in self.lost)


def read(connection: sqlite3.Connection) -> Salvage:
    found = Salvage()
    for table in _TABLES:
        _read_table(connection, table.name, found)
    return found


def write(found: Salvage, connection: Connection) -> None:
    """Write the rows to a new database."""
    for table in _TABLES:
        rows = [
            {name: value for name, value in row.items() if name in table.c} for row in found.rows.get(table.name, [])
        ]
        if rows:
            connection.execute(table.insert().prefix_with("OR IGNORE"), rows)
    newest = max((row["revision"] for row in found.rows.get("keys", [])), default=0)
    connection.execute(STATE.update().values(revision=newest))


def _read_table(connection: sqlite3.Connection, name: str, found: Salvage) -> None:
    try:
        cursor = connection.execute(f"SELECT rowid, * FROM {name} LIMIT 0")  # noqa: S608 - one of our own names
        columns = [column[0] for column in cursor.description]
    except sqlite3.Error:
        found.lost.add(name)
        return
    found.rows[name] = []
    last = 0
    while True:
        try:
            for row in connection.execute(f"SELECT rowid, * FROM {name} WHERE rowid > ? ORDER BY rowid", (last,)):  # noqa: S608
                last = row[0]
                found.rows[name].append(dict(zip(columns[1:], row[1:], strict=True)))
            return
        except sqlite3.Error:
            found.lost.add(name)
        row = next(_beyond(connection, name, last), None)
        if row is None:
            return
        last = row[0]
        found.rows[name].append(dict(zip(columns[1:], row[1:], strict=True)))


def _beyond(connection: sqlite3.Connection, name: str, last: int) -> Iterator[tuple[Any, ...]]:
    """Find the next row behind a damaged page."""
    for rowid in range(last + 1, last + _MAX_GAP):
        try:
            row = connection.execute(f"SELECT rowid, * FROM {name} WHERE rowid = ?", (rowid,)).fetchone()  # noqa: S608
        except sqlite3.Error:
            continue
        if row is not None:
            yield row

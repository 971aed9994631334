"""The row with the database's identity and the revision of the last changed key. Also the servers' shared clock."""

from __future__ import annotations

import time

from sqlalchemy import Connection, func, select, update

from tokka.store.rows import State
from tokka.store.tables import STATE


def read(connection: Connection) -> State:
    row = connection.execute(select(STATE.c.identity, STATE.c.revision)).one()
    return State(row.identity, row.revision)


def next_revision(connection: Connection, at_least: int = 0) -> int:
    """Return the next revision number. Other writers of keys wait until this transaction has ended."""
    current = connection.execute(
        update(STATE).values(revision=STATE.c.revision + 1).returning(STATE.c.revision)
    ).scalar_one()
    if current <= at_least:
        current = at_least + 1
        connection.execute(update(STATE).values(revision=current))
    return int(current)


def clock(connection: Connection) -> int:
    """Return seconds since 1970, by the one clock that all servers of the database share."""
    if connection.dialect.name == "sqlite":
        return int(time.time())
    return int(connection.execute(select(func.extract("epoch", func.now()))).scalar_one())

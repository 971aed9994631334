"""Rows of leases, and of the servers that hold them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict

from sqlalchemy import Connection, delete, insert, select, text, update

from tokka.store.rows import Lease
from tokka.store.state import clock
from tokka.store.tables import LEASES, SERVERS, USAGE

# Seconds without a sign of life after which a server is gone. Its leases are then deleted.
GONE_S = 15
# Minimum seconds between two signs of life. After each write, all other servers read again.
SIGN_S = 3
# Seconds that a read looks back. Transactions take seconds at most, so a read finds the changes of transactions that
# were still open at the last read.
_OPEN_S = 30
# Number of the advisory lock that a server holds while it changes leases: "Tokka" as a number, plus one.
_LOCK = 0x546F6B6B62


def lock(connection: Connection) -> None:
    """Let one server at a time change leases. SQLite already allows only one write transaction at a time."""
    if connection.dialect.name != "sqlite":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def sign(connection: Connection, writer: str) -> frozenset[str]:
    """Record a server's sign of life, and remove the servers that are gone. Return the others."""
    now = clock(connection)
    gone = select(SERVERS.c.writer).where(SERVERS.c.seen_at < now - GONE_S, SERVERS.c.writer != writer)
    for (name,) in connection.execute(gone).all():
        remove(connection, name)
    seen = {row.writer: int(row.seen_at) for row in connection.execute(select(SERVERS))}
    if writer not in seen:
        connection.execute(insert(SERVERS).values(writer=writer, seen_at=now))
    elif seen[writer] <= now - SIGN_S:
        connection.execute(update(SERVERS).where(SERVERS.c.writer == writer).values(seen_at=now))
    return frozenset(seen) | {writer}


def remove(connection: Connection, writer: str) -> None:
    for table in (LEASES, SERVERS):
        connection.execute(delete(table).where(table.c.writer == writer))


def touched(connection: Connection) -> set[str]:
    """Return the keys whose leases or usage changed in the last `_OPEN_S` seconds."""
    since = clock(connection) - _OPEN_S
    leased = select(LEASES.c.key_id).where(LEASES.c.changed_at >= since)
    used = select(USAGE.c.key_id).where(USAGE.c.written_at >= since)
    return set(connection.execute(leased.union(used)).scalars())


def of_keys(connection: Connection, key_ids: Collection[str]) -> dict[str, dict[str, Lease]]:
    """Return the leases of each key by server."""
    query = select(LEASES).where(LEASES.c.key_id.in_(key_ids))
    found: defaultdict[str, dict[str, Lease]] = defaultdict(dict)
    for row in connection.execute(query):
        found[row.key_id][row.writer] = Lease(int(row.tokens), int(row.in_use), int(row.wanted))
    return found


def put(connection: Connection, writer: str, changed: Mapping[str, Lease]) -> None:
    """Replace a server's leases of these keys."""
    if not changed:
        return
    now = clock(connection)
    connection.execute(delete(LEASES).where(LEASES.c.writer == writer, LEASES.c.key_id.in_(list(changed))))
    rows = [{"key_id": key_id, "writer": writer, **asdict(lease)} for key_id, lease in changed.items()]
    connection.execute(insert(LEASES), [row | {"changed_at": now} for row in rows])

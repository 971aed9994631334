"""Rows of stored responses. A tenant sees only its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, true, update

from tokka.store.rows import UNFINISHED, Ended, EventChunk, ResponseRow
from tokka.store.tables import RESPONSE_EVENTS, RESPONSES

# Maximum ids of one statement: databases limit a statement's parameters.
_PART = 500


def save(connection: Connection, rows: Sequence[ResponseRow], most_bytes: int) -> None:
    """Write responses, in place of earlier versions of the same ones.

    Remove the oldest complete responses of each tenant that then has more than `most_bytes`, but none of `rows`.
    """
    _insert(connection, rows)
    new = [row.id for row in rows]
    complete = RESPONSES.c.status.not_in(UNFINISHED) & RESPONSES.c.id.not_in(new)
    for tenant in {row.tenant for row in rows}:
        size = select(func.sum(RESPONSES.c.size)).where(RESPONSES.c.tenant == tenant)
        if (excess := int(connection.execute(size).scalar_one()) - most_bytes) > 0:
            _prune_tenant(connection, tenant, excess, complete)


def _insert(connection: Connection, rows: Sequence[ResponseRow]) -> None:
    now = _now()
    connection.execute(delete(RESPONSES).where(RESPONSES.c.id.in_([row.id for row in rows])))
    values = [
        {
            "id": row.id,
            "tenant": row.tenant,
            "status": row.status,
            "response": row.response,
            "items": row.items,
            "size": row.size,
            "seen_at": now,
            "created_at": now,
        }
        for row in rows
    ]
    connection.execute(insert(RESPONSES), values)


def find(connection: Connection, tenant: str, response_id: str) -> ResponseRow | None:
    own = select(RESPONSES).where(RESPONSES.c.id == response_id, RESPONSES.c.tenant == tenant)
    row = connection.execute(own).one_or_none()
    if row is None:
        return None
    return ResponseRow(row.id, row.tenant, row.status, row.response, row.items, row.size, row.seen_at)


def advance(connection: Connection, response_id: str, chunk: EventChunk | None) -> bool:
    """Note that a response is being generated, and add events. Return False if it was ended or removed meanwhile."""
    return _change(connection, response_id, chunk, {}, 0)


def finish(connection: Connection, ended: Ended, chunk: EventChunk | None) -> bool:
    """Store the end of a response, and its last events. Return False if it was ended or removed before."""
    return _change(connection, ended.id, chunk, {"status": ended.status, "response": ended.response}, ended.size)


def _change(
    connection: Connection, response_id: str, chunk: EventChunk | None, values: dict[str, Any], size: int
) -> bool:
    """Write `values` of `size` bytes, and a chunk of events. Return False if the response is complete or removed."""
    unfinished = update(RESPONSES).where(RESPONSES.c.id == response_id, RESPONSES.c.status.in_(UNFINISHED))
    more = size + (chunk.size if chunk else 0)
    if not connection.execute(
        unfinished.values(values | {"seen_at": _now(), "size": RESPONSES.c.size + more})
    ).rowcount:
        return False
    if chunk:
        _add(connection, response_id, chunk)
    return True


def events(connection: Connection, response_id: str) -> list[EventChunk]:
    """Return the stored events of a response, in order."""
    own = select(RESPONSE_EVENTS).where(RESPONSE_EVENTS.c.response_id == response_id).order_by(RESPONSE_EVENTS.c.first)
    return [EventChunk(row.first, row.data, row.size) for row in connection.execute(own)]


def remove(connection: Connection, tenant: str, response_id: str) -> bool:
    """Remove a response. Return False if the tenant has none with this id."""
    own = delete(RESPONSES).where(RESPONSES.c.id == response_id, RESPONSES.c.tenant == tenant)
    is_removed = connection.execute(own).rowcount > 0
    if is_removed:
        connection.execute(delete(RESPONSE_EVENTS).where(RESPONSE_EVENTS.c.response_id == response_id))
    return is_removed


def _add(connection: Connection, response_id: str, chunk: EventChunk) -> None:
    # A commit whose confirmation was lost is repeated.
    same = delete(RESPONSE_EVENTS).where(
        RESPONSE_EVENTS.c.response_id == response_id, RESPONSE_EVENTS.c.first == chunk.first
    )
    connection.execute(same)
    values = {"response_id": response_id, "first": chunk.first, "data": chunk.data, "size": chunk.size}
    connection.execute(insert(RESPONSE_EVENTS).values(values))


def prune(connection: Connection, ttl_s: int, most_bytes: int) -> None:
    """Remove responses older than `ttl_s`, and the oldest of each tenant with more than `most_bytes`."""
    connection.execute(delete(RESPONSES).where(RESPONSES.c.created_at < _now() - ttl_s * 1000))
    total = func.sum(RESPONSES.c.size)
    over = select(RESPONSES.c.tenant, total).group_by(RESPONSES.c.tenant).having(total > most_bytes)
    for tenant, size in connection.execute(over).all():
        _prune_tenant(connection, tenant, int(size) - most_bytes, true())
    orphans = RESPONSE_EVENTS.c.response_id.not_in(select(RESPONSES.c.id))
    connection.execute(delete(RESPONSE_EVENTS).where(orphans))


def _now() -> int:
    return time.time_ns() // 1_000_000


def _prune_tenant(connection: Connection, tenant: str, excess: int, which: ColumnElement[bool]) -> None:
    """Remove the oldest responses of a tenant, of those that match `which`: at least `excess` bytes."""
    oldest = (
        select(RESPONSES.c.id, RESPONSES.c.size)
        .where(RESPONSES.c.tenant == tenant, which)
        .order_by(RESPONSES.c.created_at, RESPONSES.c.id)
    )
    ids: list[str] = []
    for response_id, size in connection.execute(oldest):
        if excess <= 0:
            break
        ids.append(response_id)
        excess -= size
    for start in range(0, len(ids), _PART):
        part = ids[start : start + _PART]
        connection.execute(delete(RESPONSES).where(RESPONSES.c.id.in_(part)))
        connection.execute(delete(RESPONSE_EVENTS).where(RESPONSE_EVENTS.c.response_id.in_(part)))

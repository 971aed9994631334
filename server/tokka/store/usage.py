"""Rows of usage: written as sums by the hour, read as totals and reports."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Insert, Table, case, cast, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from tokka.store.rows import Batch, Periods, ReportQuery, ReportRow, Totals, UsageRow
from tokka.store.state import clock
from tokka.store.tables import USAGE, WRITERS

_COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
_DAY_S = 86400
# Seconds that a read looks back before the last one. Transactions take seconds at most, so a read finds the usage of
# transactions that were still open at the last read.
_OPEN_S = 30
# Seconds after which a silent writer will not repeat a batch.
_WRITER_S = 30 * _DAY_S


def write(connection: Connection, batch: Batch) -> None:
    """Add a batch to the stored usage, unless it was added before."""
    last = connection.execute(select(WRITERS.c.number).where(WRITERS.c.writer == batch.writer)).scalar()
    if last is not None and last >= batch.number:
        return
    now = clock(connection)
    if last is None:
        connection.execute(delete(WRITERS).where(WRITERS.c.written_at < now - _WRITER_S))
    mark = _insert(connection, WRITERS)
    connection.execute(
        _upsert(mark, WRITERS, {"number": _new(mark, "number"), "written_at": _new(mark, "written_at")}),
        {"writer": batch.writer, "number": batch.number, "written_at": now},
    )
    add(connection, batch.rows, now)


def add(connection: Connection, rows: Sequence[UsageRow], now: int) -> None:
    statement = _insert(connection, USAGE)
    sums: dict[str, Any] = {name: USAGE.c[name] + _new(statement, name) for name in _COUNTS}
    statement = _upsert(statement, USAGE, sums | {"written_at": _new(statement, "written_at")})
    # All servers use the same order, so that two of them never wait for each other's rows.
    ordered = sorted(rows, key=lambda row: (row.hour, row.key_id, row.tenant, row.model))
    connection.execute(statement, [asdict(row) | {"written_at": now} for row in ordered])


def totals(connection: Connection, periods: Periods, since: int | None) -> Totals:
    """Return the tokens of keys with usage written after `since`; None: of all keys with usage in the month."""
    at = clock(connection)
    tokens = USAGE.c.prompt_tokens + USAGE.c.completion_tokens
    today = case((USAGE.c.hour >= periods.day, tokens), else_=0)
    query = select(USAGE.c.key_id, func.sum(today), func.sum(tokens)).where(USAGE.c.hour >= periods.month)
    if since is not None:
        lately = select(USAGE.c.key_id).where(USAGE.c.written_at >= since - _OPEN_S)
        query = query.where(USAGE.c.key_id.in_(lately))
    found = connection.execute(query.group_by(USAGE.c.key_id))
    return Totals(periods, {key_id: (int(day), int(month)) for key_id, day, month in found}, at)


def totals_of(connection: Connection, key_ids: Collection[str], periods: Periods) -> dict[str, tuple[int, int]]:
    """Return these keys' tokens in the day and the month."""
    tokens = USAGE.c.prompt_tokens + USAGE.c.completion_tokens
    today = case((USAGE.c.hour >= periods.day, tokens), else_=0)
    query = select(USAGE.c.key_id, func.sum(today), func.sum(tokens)).where(
        USAGE.c.hour >= periods.month, USAGE.c.key_id.in_(key_ids)
    )
    found = connection.execute(query.group_by(USAGE.c.key_id))
    return {key_id: (int(day), int(month)) for key_id, day, month in found}


def report(connection: Connection, query: ReportQuery) -> list[ReportRow]:
    """Return the sums of each group, in the order of time, tenant, key and model."""
    columns: dict[str, ColumnElement[Any]] = {
        "key": USAGE.c.key_id.label("key_id"),
        "tenant": USAGE.c.tenant.label("tenant"),
        "model": USAGE.c.model.label("model"),
        "day": (USAGE.c.hour - USAGE.c.hour % _DAY_S).label("day"),
        "hour": USAGE.c.hour.label("hour"),
    }
    groups = [columns[name] for name in ("day", "hour", "tenant", "key", "model") if name in query.by]
    sums = [cast(func.coalesce(func.sum(USAGE.c[name]), 0), BigInteger).label(name) for name in _COUNTS]
    found = connection.execute(
        select(*groups, *sums)
        .where(USAGE.c.hour >= query.since, USAGE.c.hour < query.until)
        .group_by(*groups)
        .order_by(*groups)
        .limit(query.limit)
    )
    rows = [dict(row._mapping) for row in found]
    return [ReportRow(**{name: row.pop(name) for name in _COUNTS}, group=row) for row in rows]


def _insert(connection: Connection, table: Table) -> Insert:
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _new(statement: Insert, name: str) -> ColumnElement[Any]:
    assert isinstance(statement, sqlite.Insert | postgresql.Insert)
    return statement.excluded[name]


def _upsert(statement: Insert, table: Table, values: dict[str, Any]) -> Insert:
    assert isinstance(statement, sqlite.Insert | postgresql.Insert)
    return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=values)

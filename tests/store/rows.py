"""Rows of keys and usage, written and read."""

from __future__ import annotations

import secrets
from typing import Any

from tokka.store import keys, usage
from tokka.store.database import Database
from tokka.store.rows import Batch, KeyRow, ReportQuery, UsageRow

DAY = 86400


def key(**fields: Any) -> KeyRow:
    values: dict[str, Any] = {
        "id": f"key_{secrets.token_hex(8)}",
        "name": "n",
        "tenant": "t",
        "prefix": "tk-abcde",
        "digest": secrets.token_hex(32),
        "scopes": frozenset({"inference"}),
        "created_at": 1_800_000_000,
    }
    return KeyRow(**values | fields)


def added(database: Database, row: KeyRow) -> KeyRow:
    with database.transaction(write=True) as connection:
        return keys.add(connection, row)


def changes(database: Database, revision: int = 0) -> list[KeyRow]:
    with database.transaction(write=False) as connection:
        return keys.changed_after(connection, revision)


def write(database: Database, number: int, *rows: UsageRow, writer: str = "w") -> None:
    with database.transaction(write=True) as connection:
        usage.write(connection, Batch(writer, number, rows))


def report(database: Database, *by: Any, since: int = 0, until: int = 10 * DAY) -> list[tuple[Any, ...]]:
    with database.transaction(write=False) as connection:
        rows = usage.report(connection, ReportQuery(since, until, by, 1000))
    return [
        (*row.group.values(), row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens) for row in rows
    ]

"""Rows of keys. Every change gets the next revision number, by which other servers find it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any, cast

from sqlalchemy import Connection, Row, insert, select, update

from tokka.core import KeyScope, Limits
from tokka.store.rows import KeyRow
from tokka.store.state import next_revision
from tokka.store.tables import KEYS

_LIMITS = [field.name for field in fields(Limits)]


def changed_after(connection: Connection, revision: int) -> list[KeyRow]:
    """Return the keys changed after this revision, in the order of their revisions."""
    found = connection.execute(select(KEYS).where(KEYS.c.revision > revision).order_by(KEYS.c.revision))
    return [_from_row(row) for row in found]


def find(connection: Connection, key_id: str) -> KeyRow | None:
    """Return a key and lock its row, so that no other transaction's change is overwritten."""
    row = connection.execute(select(KEYS).where(KEYS.c.id == key_id).with_for_update()).one_or_none()
    return _from_row(row) if row else None


def add(connection: Connection, key: KeyRow) -> KeyRow:
    """Insert a key. Return it with its revision."""
    key = replace(key, revision=next_revision(connection))
    connection.execute(insert(KEYS).values(_to_row(key)))
    return key


def change(connection: Connection, key: KeyRow) -> KeyRow:
    key = replace(key, revision=next_revision(connection))
    connection.execute(update(KEYS).where(KEYS.c.id == key.id).values(_to_row(key)))
    return key


def restore(connection: Connection, known: Sequence[KeyRow]) -> None:
    """Write the known keys that a new database, or one from a backup, lacks or has in an older revision."""
    present = {row.id: row.revision for row in connection.execute(select(KEYS.c.id, KEYS.c.revision))}
    missing = [key for key in known if key.id not in present]
    older = [key for key in known if present.get(key.id, key.revision) < key.revision]
    if not (missing or older):
        return
    revision = next_revision(connection, at_least=max(key.revision for key in known))
    if missing:
        connection.execute(insert(KEYS), [_to_row(replace(key, revision=revision)) for key in missing])
    for key in older:
        connection.execute(update(KEYS).where(KEYS.c.id == key.id).values(_to_row(replace(key, revision=revision))))


def _to_row(key: KeyRow) -> dict[str, Any]:
    row = asdict(key)
    return {
        **{name: value for name, value in row.items() if name != "limits"},
        **row["limits"],
        "scopes": ",".join(sorted(key.scopes)),
        "models": None if key.models is None else json.dumps(sorted(key.models)),
    }


def _from_row(row: Row[Any]) -> KeyRow:
    values = dict(row._mapping)
    limits = Limits(**{name: values.pop(name) for name in _LIMITS})
    scopes = cast("list[KeyScope]", values.pop("scopes").split(","))
    models = values.pop("models")
    return KeyRow(
        **values,
        limits=limits,
        scopes=frozenset(scopes),
        models=None if models is None else frozenset(json.loads(models)),
    )

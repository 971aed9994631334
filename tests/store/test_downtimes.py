"""Downtimes in both databases: reading, removal, and the migration that adds their table."""

from __future__ import annotations

import pytest

from tests.store.conftest import Connect
from tests.store.databases import go_back_to
from tests.store.planned import not_over, planned_downtime
from tests.store.rows import added, changes, key
from tokka.store import downtimes
from tokka.store.database import Database


def test_not_over_returns_downtimes_in_order_of_their_begin(database: Database) -> None:
    second, first = planned_downtime(database, 2**40, reason="Ärjä 🦌"), planned_downtime(database, 1000)
    assert not_over(database, 1099) == [first, second]
    assert not_over(database, 1100) == [second]
    with database.transaction(write=False) as connection:
        assert downtimes.all_of_them(connection) == [first, second]


def test_remove_deletes_a_downtime_once(database: Database) -> None:
    planned = planned_downtime(database, 1000)
    with database.transaction(write=True) as connection:
        assert downtimes.remove(connection, planned.id)
        assert not downtimes.remove(connection, planned.id)
    assert not_over(database, 0) == []


def test_a_reader_takes_so_many_at_most(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downtimes, "MAX_ROWS", 3)
    for begin in range(5):
        planned_downtime(database, begin)
    assert [downtime.begin for downtime in not_over(database, 0)] == [0, 1, 2]


def test_migration_adds_the_downtimes_table_and_keeps_the_keys(connect: Connect, database: Database) -> None:
    row = added(database, key())
    go_back_to("0001", database)
    database.close()
    migrated = connect()
    migrated.open(None)
    assert changes(migrated) == [row]
    planned = planned_downtime(migrated, 1000)
    assert not_over(migrated, 0) == [planned]

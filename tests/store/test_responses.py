"""Stored responses on both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import insert

from tokka.store import responses
from tokka.store.database import Database
from tokka.store.rows import Ended, EventChunk, ResponseRow
from tokka.store.tables import RESPONSE_EVENTS

DAY_S = 86400


def row(number: int, tenant: str = "alice", size: int = 100, status: str = "completed") -> ResponseRow:
    return ResponseRow(f"resp_{number:032x}", tenant, status, b"\x00\xff", b"\x01", size)


def save(database: Database, *rows: ResponseRow, most_bytes: int = 1 << 30) -> None:
    with database.transaction(write=True) as connection:
        responses.save(connection, rows, most_bytes)


def find(database: Database, given: ResponseRow, tenant: str = "alice") -> ResponseRow | None:
    with database.transaction(write=False) as connection:
        found = responses.find(connection, tenant, given.id)
    return found and replace(found, seen_at=0)


def prune(database: Database, ttl_s: int, most_bytes: int) -> None:
    with database.transaction(write=True) as connection:
        responses.prune(connection, ttl_s, most_bytes)


def test_response_comes_back_as_it_was_saved(database: Database) -> None:
    save(database, row(1), row(2))
    assert find(database, row(1)) == row(1)
    save(database, row(1, status="incomplete"))
    assert find(database, row(1)) == row(1, status="incomplete")
    assert find(database, row(2)) == row(2)


def test_response_belongs_to_its_tenant(database: Database) -> None:
    save(database, row(1))
    assert find(database, row(1), "bob") is None
    with database.transaction(write=True) as connection:
        assert not responses.remove(connection, "bob", row(1).id)
        assert responses.remove(connection, "alice", row(1).id)
    assert find(database, row(1)) is None


def test_pruning_removes_old_responses(database: Database) -> None:
    save(database, row(1))
    prune(database, DAY_S, 1 << 30)
    assert find(database, row(1)) is not None
    prune(database, -1, 1 << 30)
    assert find(database, row(1)) is None


@pytest.mark.parametrize("most", [1000, 350, 99])
def test_pruning_keeps_the_newest_within_the_limit(database: Database, most: int) -> None:
    rows = [row(number) for number in range(8)]
    for each in rows:
        save(database, each)
    save(database, row(99, "bob"))
    prune(database, DAY_S, most)
    kept = [each for each in rows if find(database, each)]
    assert len(kept) == min(8, most // 100)
    assert kept == rows[8 - len(kept) :]
    assert (find(database, row(99, "bob"), "bob") is not None) == (most >= 100)


def test_saving_removes_the_oldest_complete_responses(database: Database) -> None:
    statuses = ["in_progress", "completed", "failed", "completed"]
    rows = [row(number, status=status) for number, status in enumerate(statuses)]
    for each in rows:
        save(database, each)
    with database.transaction(write=True) as connection:
        connection.execute(insert(RESPONSE_EVENTS).values(response_id=rows[1].id, first=0, data=b"a", size=1))
    save(database, row(99, "bob"))
    save(database, row(5), row(6), most_bytes=450)
    found = [each for each in (*rows, row(5), row(6)) if find(database, each)]
    assert found == [rows[0], rows[3], row(5), row(6)]
    assert find(database, row(99, "bob"), "bob") is not None
    with database.transaction(write=False) as connection:
        assert responses.events(connection, rows[1].id) == []
    # A response that is larger than the limit stays until the next pruning.
    save(database, row(7, size=900), most_bytes=450)
    assert [each for each in (*rows, row(5), row(7, size=900)) if find(database, each)] == [rows[0], row(7, size=900)]


def test_running_response_gathers_events_until_its_end(database: Database) -> None:
    save(database, row(1, status="queued"))
    chunks = [EventChunk(0, b"a", 30), EventChunk(3, b"b", 20), EventChunk(5, b"c", 10)]
    with database.transaction(write=True) as connection:
        assert responses.advance(connection, row(1).id, chunks[0])
        # A commit whose confirmation was lost is repeated.
        assert responses.advance(connection, row(1).id, chunks[0])
        assert responses.advance(connection, row(1).id, None)
        assert responses.advance(connection, row(1).id, chunks[1])
        assert responses.finish(connection, Ended(row(1).id, "completed", b"end", 5), chunks[2])
        assert not responses.advance(connection, row(1).id, EventChunk(6, b"late", 1))
        assert not responses.finish(connection, Ended(row(1).id, "cancelled", b"late", 1), None)
        assert responses.events(connection, row(1).id) == chunks
    # The repeated chunk counts twice.
    assert find(database, row(1)) == replace(
        row(1, size=100 + 2 * 30 + 20 + 10 + 5), status="completed", response=b"end"
    )


def test_removed_response_gathers_no_events(database: Database) -> None:
    save(database, row(1, status="in_progress"), row(2, status="in_progress"))
    with database.transaction(write=True) as connection:
        for number in (1, 2):
            responses.advance(connection, row(number).id, EventChunk(0, b"a", 1))
        assert responses.remove(connection, "alice", row(1).id)
        assert not responses.advance(connection, row(1).id, EventChunk(1, b"b", 1))
        assert responses.events(connection, row(1).id) == []
    prune(database, -1, 1 << 30)
    with database.transaction(write=False) as connection:
        assert responses.events(connection, row(2).id) == []

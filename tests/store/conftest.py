"""Fixtures that run each test on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tokka.store.database import Database
from tokka.store.location import database_at

Connect = Callable[[], Database]


@pytest.fixture(params=["sqlite", "postgres"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Return a function that makes a further `Database` of the same data, as another program has it."""
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgres" else None
    made: list[Database] = []

    def one_more() -> Database:
        made.append(database_at(url, tmp_path, 5.0))
        return made[-1]

    yield one_more
    for database in made:
        database.close()


@pytest.fixture
def database(connect: Connect) -> Database:
    database = connect()
    database.open(None)
    return database

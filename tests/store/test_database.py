"""Both databases behind one interface: keys, usage, revisions and migrations."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from tests.store.conftest import Connect
from tests.store.databases import Postgres, go_back_to
from tests.store.rows import DAY, added, changes, key, report, write
from tokka.core import Limits
from tokka.errors import ConfigurationError
from tokka.store import keys, migration, state, usage
from tokka.store.database import Database
from tokka.store.errors import Unavailable
from tokka.store.location import database_at
from tokka.store.rows import Periods, UsageRow
from tokka.store.tables import METADATA

HOUR = 3600


# -- keys -------------------------------------------------------------------------------------------------------


def test_a_key_comes_back_as_it_was_written(database: Database) -> None:
    full = key(
        name="Ärjä 🦌",
        scopes=frozenset({"inference", "metrics", "admin"}),
        limits=Limits(1, 2, 3, 4, 5, 2**53 - 1),
        models=frozenset({"a", "b,c"}),
        expires_at=1_900_000_000,
        previous_digest="00" * 32,
        previous_until=1_850_000_000,
        token_key="11" * 32,
        previous_token_key="22" * 32,
    )
    written = [added(database, row) for row in (full, key())]
    assert changes(database) == written
    assert replace(written[0], revision=0) == full


def test_each_change_takes_the_next_revision_and_is_found_by_it(database: Database) -> None:
    first, second = added(database, key()), added(database, key())
    assert second.revision == first.revision + 1
    with database.transaction(write=True) as connection:
        changed = keys.change(connection, replace(first, revoked_at=5))
    assert changes(database, second.revision) == [changed]
    assert changed.revision == second.revision + 1


def test_a_digest_is_there_once(database: Database) -> None:
    row = added(database, key())
    with pytest.raises(Unavailable) as failed:
        added(database, key(digest=row.digest))
    assert row.digest not in failed.value.reason
    assert changes(database) == [row]


def test_reader_of_a_revision_has_read_all_earlier_ones(connect: Connect, database: Database) -> None:
    """Otherwise, a poller that asks for newer revisions would miss a key for ever."""
    began, go_on = threading.Event(), threading.Event()
    other, reader = connect(), connect()
    other.open(None)
    reader.open(None)

    def slow() -> None:
        with database.transaction(write=True) as connection:
            keys.add(connection, key(name="first"))
            began.set()
            assert go_on.wait(10)

    first = threading.Thread(target=slow)
    first.start()
    assert began.wait(10)
    second = threading.Thread(target=added, args=(other, key(name="second")))
    second.start()
    # The second transaction waits for the first. Otherwise, readers would see the higher revision before the lower.
    second.join(0.3)
    assert changes(reader) == []
    go_on.set()
    first.join(10)
    second.join(10)
    assert [row.name for row in changes(reader)] == ["first", "second"]


def test_changes_of_one_key_at_once_do_not_undo_each_other(connect: Connect, database: Database) -> None:
    row = added(database, key())

    def change(other: Database, **fields: Any) -> None:
        with other.transaction(write=True) as connection:
            present = keys.find(connection, row.id)
            assert present
            keys.change(connection, replace(present, **fields))

    others = [connect(), connect()]
    for other in others:
        other.open(None)
    threads = [
        threading.Thread(target=change, args=(others[0],), kwargs={"revoked_at": 7}),
        threading.Thread(target=change, args=(others[1],), kwargs={"name": "new"}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    (found,) = changes(database)
    assert (found.revoked_at, found.name) == (7, "new")


def test_restore_adds_missing_keys_and_keeps_newer_ones(database: Database) -> None:
    mine, theirs = added(database, key()), added(database, key(name="newer"))
    known = [replace(mine, revision=mine.revision + 50, revoked_at=1), replace(theirs, name="older", revision=0), key()]
    with database.transaction(write=True) as connection:
        keys.restore(connection, known)
    found = {row.id: row for row in changes(database)}
    assert found[mine.id].revoked_at == 1
    assert found[theirs.id].name == "newer"
    assert known[2].id in found
    # The revision is above all that any server has read, so all servers find these keys.
    assert found[mine.id].revision == found[known[2].id].revision == mine.revision + 51


# -- usage ------------------------------------------------------------------------------------------------------


def test_usage_adds_up_by_hour_key_tenant_and_model(database: Database) -> None:
    row = UsageRow(HOUR, "k", "t", "m", 1, 10, 4, 5)
    write(database, 1, row, replace(row, model="other"))
    write(database, 2, row, replace(row, hour=2 * HOUR))
    assert report(database, "hour", "key", "tenant", "model") == [
        (HOUR, "t", "k", "m", 2, 20, 8, 10),
        (HOUR, "t", "k", "other", 1, 10, 4, 5),
        (2 * HOUR, "t", "k", "m", 1, 10, 4, 5),
    ]


def test_a_batch_counts_once_however_often_it_is_written(database: Database) -> None:
    row = UsageRow(HOUR, "k", "t", "m", 1, 10, 4, 5)
    for _ in range(3):
        write(database, 1, row)
    write(database, 1, row, writer="another server")
    assert report(database, "key") == [("k", 2, 20, 8, 10)]


def test_a_report_takes_whole_hours_and_sums_up_days(database: Database) -> None:
    rows = [UsageRow(hour, "k", "t", "m", 1, 1, 0, 0) for hour in (0, DAY - HOUR, DAY, 2 * DAY)]
    write(database, 1, *rows)
    assert report(database, "day") == [(0, 2, 2, 0, 0), (DAY, 1, 1, 0, 0), (2 * DAY, 1, 1, 0, 0)]
    assert report(database, "tenant", since=DAY - HOUR, until=2 * DAY) == [("t", 2, 2, 0, 0)]


def test_totals_cover_day_and_month_of_changed_keys(database: Database) -> None:
    month, today = 3 * DAY, 5 * DAY
    hours = (month - HOUR, month, today, today + HOUR)
    write(database, 1, *(UsageRow(hour, "k", "t", "m", 1, 10, 4, 5) for hour in hours))
    with database.transaction(write=False) as connection:
        found = usage.totals(connection, Periods(today, month), None)
        assert found.by_key == {"k": (30, 45)}
        assert usage.totals(connection, Periods(today, month), found.at).by_key == found.by_key
        assert usage.totals(connection, Periods(today, month), found.at + 3600).by_key == {}


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def fail_after_adding() -> None:
        with database.transaction(write=True) as connection:
            keys.add(connection, key())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_adding()
    assert changes(database) == []


# -- migrations -------------------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_queries_name(database: Database) -> None:
    with database.transaction(write=False) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_keys_of_the_second_revision_are_migrated(connect: Connect, database: Database) -> None:
    row = added(database, key())
    go_back_to("0002", database)
    newer = connect()
    newer.open(None)
    assert changes(newer) == [row]
    assert row.token_key is None


def test_the_names_of_the_files_are_the_revisions_that_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migration.__file__).with_name("migrations")))
    scripts = ScriptDirectory.from_config(config)
    assert migration.revisions() == [script.revision for script in reversed(list(scripts.walk_revisions()))]


def test_a_database_of_a_newer_program_is_refused_and_left_alone(connect: Connect, database: Database) -> None:
    row = added(database, key())
    with database.transaction(write=True) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError) as refused:
        connect().open(None)
    assert "newer Tokka" in str(refused.value)
    assert "9999" in str(refused.value)
    assert changes(database) == [row]


def test_programs_that_start_at_once_migrate_once(postgres: Postgres, tmp_path: Path) -> None:
    for url in (None, postgres.new_database()):
        script = (
            "import sys, json; from pathlib import Path; from tokka.store.location import database_at\n"
            "from tokka.store import state\n"
            "url, folder = json.loads(sys.argv[1]); database = database_at(url, Path(folder), 20.0)\n"
            "print('here', flush=True); sys.stdin.readline(); database.open(None)\n"
            "with database.transaction(write=False) as connection: print(state.read(connection).identity)"
        )
        command = [sys.executable, "-c", script, json.dumps([url, str(tmp_path)])]
        programs = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        for program in programs:
            assert program.stdout
            assert program.stdout.readline() == "here\n"
        outputs = [program.communicate("\n", timeout=60)[0] for program in programs]
        assert [program.returncode for program in programs] == [0] * 4
        assert len(set(outputs)) == 1


# -- PostgreSQL or SQLite alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_usual_forms_of_a_url_are_taken(postgres: Postgres, scheme: str) -> None:
    database = database_at(postgres.new_database().replace("postgresql", scheme), Path(), 1.0)
    database.open(None)
    assert "the-password" not in database.place
    database.close()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "sqlite:///x", "secret", "postgresql+asyncpg://u:secret@h/d"])
def test_another_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        database_at(url, Path(), 1.0)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("part", "instead"),
    [("the-password", "a-wrong-secret"), (":the-password@", ":the-password@no-such-host.invalid:1,")],
)
def test_failed_login_is_reported_without_the_password(postgres: Postgres, part: str, instead: str) -> None:
    database = database_at(postgres.url("postgres").replace(part, instead).replace(",127", "/x?host=127"), Path(), 1.0)
    with pytest.raises(Unavailable) as failed:
        database.open(None)
    assert failed.value.reason
    assert "password@" not in failed.value.reason
    assert "a-wrong-secret" not in failed.value.reason
    assert "the-password" not in failed.value.reason


def test_a_statement_that_hangs_is_ended(postgres: Postgres) -> None:
    database = database_at(postgres.new_database(), Path(), 1.0)
    database.open(None)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="timeout"), database.transaction(write=False) as connection:
        connection.execute(text("SELECT pg_sleep(30)"))
    assert time.monotonic() - began < 15
    with database.transaction(write=False) as connection:
        assert state.read(connection).revision == 0
    database.close()


def test_version_changes_when_another_connection_writes(tmp_path: Path) -> None:
    own, other = database_at(None, tmp_path, 1.0), database_at(None, tmp_path, 1.0)
    own.open(None)
    other.open(None)
    before = own.version()
    added(own, key())
    assert own.version() == before
    added(other, key())
    assert own.version() != before
    own.close()
    other.close()

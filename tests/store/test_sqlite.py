"""The SQLite file: its permissions, and damage. A damaged file is never used, overwritten or silently lost."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.planned import not_over, planned_downtime
from tests.store.rows import added, changes, key, report, write
from tokka.errors import StartupError
from tokka.store.errors import Damaged, NotWritable, Unavailable
from tokka.store.rows import KeyRow, UsageRow
from tokka.store.sqlite import NAME, SqliteDatabase

PAGE = 4096
KEYS = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def filled(folder: Path) -> list[KeyRow]:
    """Return the keys of a closed database that has several pages of keys and of usage."""
    database = opened(folder)
    rows = [added(database, key(name=f"n{number}")) for number in range(KEYS)]
    write(database, 1, *(UsageRow(3600, f"k{number}", "t", "m", 1, 10, 0, 5) for number in range(KEYS)))
    database.close()
    return rows


def opened(folder: Path, known: list[KeyRow] | None = None) -> SqliteDatabase:
    database = SqliteDatabase(folder, 5.0)
    database.open(known)
    return database


def aside(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{NAME}.corrupt-*"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_may_read_it(folder: Path) -> None:
    before = os.umask(0)
    try:
        database = opened(folder)
        added(database, key())
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == dict.fromkeys(
        (NAME, f"{NAME}-wal", f"{NAME}-shm", f"{NAME}.lock"), 0o600
    )
    database.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritable, match=r"file/state.*--state-dir"):
        opened(tmp_path / "file" / "state")


def test_another_programs_transaction_makes_it_wait_and_then_say_so(folder: Path) -> None:
    database = SqliteDatabase(folder, 0.1)
    database.open(None)
    other = sqlite3.connect(folder / NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        added(database, key())
    assert changes(database) == []
    other.execute("ROLLBACK")
    other.close()
    added(database, key())
    database.close()


# -- damage found at the start ----------------------------------------------------------------------------------


def overwrite(path: Path, at: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(what)


def garble_header(path: Path) -> None:
    overwrite(path, 0, b"not a database at all" * 10)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def other_file(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE something (x)")
    connection.close()


def zero_all(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [garble_header, empty, other_file, zero_all])
def test_database_without_readable_keys_stops_every_start(
    folder: Path, filled: list[KeyRow], damage: Callable[[Path], None]
) -> None:
    damage(folder / NAME)
    content = (folder / NAME).read_bytes()
    for _ in range(2):
        with pytest.raises(StartupError) as refused:
            opened(folder)
        assert refused.value.exit_code == 3
        (left,) = aside(folder)
        assert str(left) in str(refused.value)
        assert str(folder / NAME) in str(refused.value)
        assert "\n" not in str(refused.value)
        assert left.read_bytes() == content
        assert not (folder / NAME).exists()
    left.unlink()
    assert changes(opened(folder)) == []


def page_of_keys(path: Path, name: bytes) -> int:
    """Return the number of the page with this key's row."""
    return next(
        number
        for number in range(1, path.stat().st_size // PAGE)
        if (page := path.read_bytes()[number * PAGE : (number + 1) * PAGE])[:1] == b"\x0d" and name in page
    )


def test_the_keys_beside_a_lost_page_are_carried_over(folder: Path, filled: list[KeyRow]) -> None:
    path = folder / NAME
    middle = filled[KEYS // 2]
    overwrite(path, page_of_keys(path, middle.digest.encode()) * PAGE, bytes(PAGE))
    content = path.read_bytes()
    database = opened(folder)
    found = changes(database)
    assert middle.id not in {row.id for row in found}
    # A page holds about ten rows.
    assert KEYS - 40 < len(found) < KEYS
    assert found == [row for row in filled if row in found]
    assert report(database, "tenant") == [("t", KEYS, 10 * KEYS, 0, 5 * KEYS)]
    assert aside(folder)[0].read_bytes() == content
    assert mode(path) == 0o600
    assert added(database, key()).revision > max(row.revision for row in filled if row in found)
    database.close()
    # The rebuilt file is undamaged, so it is not set aside.
    assert changes(opened(folder))[: len(found)] == found
    assert len(aside(folder)) == 1


def test_truncated_file_is_recovered_or_stops_the_start(folder: Path, filled: list[KeyRow]) -> None:
    path = folder / NAME
    os.truncate(path, path.stat().st_size // 2 // PAGE * PAGE)
    try:
        found = changes(opened(folder))
    except StartupError:
        assert not path.exists()
    else:
        assert found
        assert set(found) <= set(filled)
    assert len(aside(folder)) == 1


def test_the_rests_of_a_deleted_file_are_not_written_into_a_new_one(folder: Path) -> None:
    database = opened(folder)
    added(database, key())
    rests = {name: (folder / name).read_bytes() for name in (f"{NAME}-wal", f"{NAME}-shm")}
    database.close()
    (folder / NAME).unlink()
    for name, content in rests.items():
        (folder / name).write_bytes(content)
    database = opened(folder)
    assert changes(database) == []
    database.close()


# -- damage found by a running server ---------------------------------------------------------------------------


def damaged(database: SqliteDatabase) -> str:
    with pytest.raises(Damaged) as found:
        changes(database)
    return found.value.reason


@pytest.mark.parametrize("damage", [garble_header, empty, zero_all, Path.unlink])
def test_running_program_recreates_a_damaged_file(folder: Path, damage: Callable[[Path], None]) -> None:
    database = opened(folder)
    rows = [added(database, key()) for _ in range(3)]
    write(database, 1, UsageRow(3600, "k", "t", "m", 1, 10, 0, 5))
    planned = planned_downtime(database, 5000)
    damage(folder / NAME)
    assert damaged(database)
    database.open(rows)
    assert {row.id for row in changes(database)} == {row.id for row in rows}
    # The open connection could still read the usage.
    assert report(database, "key") == [("k", 1, 10, 0, 5)]
    assert not_over(database, 0) == [planned]
    # The lost file already contained this batch, so it does not count twice.
    write(database, 1, UsageRow(3600, "k", "t", "m", 1, 10, 0, 5))
    assert report(database, "key") == [("k", 1, 10, 0, 5)]
    assert mode(folder / NAME) == 0o600
    database.close()


def test_restored_backup_is_not_mixed_with_later_writes(folder: Path) -> None:
    database = opened(folder)
    kept = added(database, key(name="in the backup"))
    backup = sqlite3.connect(folder / "backup")
    with sqlite3.connect(folder / NAME) as source:
        source.backup(backup)
    source.close()
    backup.close()
    added(database, key(name="after it"))
    # The log of the replaced file stays in the folder.
    (folder / "backup").rename(folder / NAME)
    assert damaged(database) == "the file was replaced"
    database.open([])
    assert changes(database) == [kept]
    database.close()
    assert changes(opened(folder)) == [kept]


def test_close_keeps_the_log_of_a_file_that_another_program_made(folder: Path) -> None:
    first = opened(folder)
    added(first, key())
    for path in (folder / NAME, folder / f"{NAME}-wal", folder / f"{NAME}-shm"):
        path.rename(f"{path}.away")
    second = opened(folder)
    rows = [added(second, key())]
    assert damaged(first) == "the file was replaced"
    first.open(rows)
    rows.append(added(second, key()))
    assert changes(first) == changes(second) == rows
    first.close()
    rows.append(added(second, key()))
    third = opened(folder)
    assert changes(third) == rows
    third.close()
    second.close()


def test_replaced_file_is_noticed_before_the_next_write(folder: Path) -> None:
    database = opened(folder)
    added(database, key())
    other = opened(folder.with_name("other"))
    kept = added(other, key(name="other"))
    other.close()
    (folder.with_name("other") / NAME).rename(folder / NAME)
    for suffix in ("-wal", "-shm"):
        (folder / f"{NAME}{suffix}").unlink(missing_ok=True)
    assert damaged(database) == "the file was replaced"
    database.open([])
    assert changes(database) == [kept]
    database.close()

"""State and cache folders on a file system without locks, as Lustre and NFS may be mounted."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.patches import patched
from tests.program import TOKKA, failing, running
from tokka.engine.vllm.start.embedded import embedded_model
from tokka.errors import StartupError
from tokka.store.database import failure
from tokka.store.errors import NotWritable, WithoutLocks
from tokka.store.sqlite import NAME, SqliteDatabase

FAKE = ("--engine", "fake")


def no_locks(folder: Path, number: int) -> dict[str, str]:
    fault = f"""
import fcntl as _fcntl, types
def _flock(*_):
    raise OSError({number}, "no locks here")
fcntl = types.SimpleNamespace(LOCK_EX=_fcntl.LOCK_EX, flock=_flock)
"""
    return patched(folder / "patches", {"tokka.store.sqlite": fault})


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_asked_for_state_without_locks_names_the_remedy(tmp_path: Path, number: int) -> None:
    code, lines = failing(*FAKE, "--port", "0", "--state-dir", str(tmp_path / "state"), env=no_locks(tmp_path, number))
    assert (code, len(lines)) == (2, 1)
    for words in (str(tmp_path / "state"), "no file locks", "Lustre", "--state-dir on a local disk", "--database-url"):
        assert words in lines[0]


def test_server_without_a_state_dir_starts_without_locks(tmp_path: Path) -> None:
    env = {**no_locks(tmp_path, errno.ENOSYS), "TOKKA_STATE_DIR": "", "XDG_STATE_HOME": str(tmp_path / "state")}
    with running(*FAKE, env=env) as program, program.client() as client:
        (told,) = [line for line in program.log if line.get("event") == "no_state_database"]
        assert "no file locks" in told["reason"]
        assert client.get("/readyz").status_code == 200


def test_keys_create_without_locks_is_one_line(tmp_path: Path) -> None:
    env = {**os.environ, **no_locks(tmp_path, errno.ENOLCK)}
    command = [str(TOKKA), "keys", "create", "--name", "a", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode
    assert len(done.stderr.splitlines()) == 1
    assert "no file locks" in done.stderr


@pytest.mark.parametrize("name", ["SQLITE_PROTOCOL", "SQLITE_IOERR_LOCK", "SQLITE_IOERR_SHMMAP"])
def test_sqlite_that_cannot_lock_says_so(name: str) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = getattr(sqlite3, name)
    unavailable = failure(error)
    assert isinstance(unavailable, WithoutLocks)
    # Exit code 2: another start would not help.
    assert unavailable.at_start("/state").exit_code == 2


@pytest.mark.parametrize("exists", [False, True])
def test_only_a_database_with_content_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    if exists:
        database = SqliteDatabase(tmp_path, 5.0)
        database.open(None)
        database.close()

    def refuse(*_: object) -> None:
        # SQLite has created the file by then.
        (tmp_path / NAME).touch()
        error = sqlite3.OperationalError("locking protocol")
        error.sqlite_errorcode = sqlite3.SQLITE_PROTOCOL
        raise error

    monkeypatch.setattr("tokka.store.sqlite.migrate", refuse)
    with pytest.raises(WithoutLocks if exists else NotWritable, match="no file locks"):
        SqliteDatabase(tmp_path, 5.0).open(None)


def test_cache_dir_without_locks_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StartupError, match=r"no file locks.*another --cache-dir on a local disk"):
        embedded_model(tmp_path, lambda _: None, lambda: None)

"""SQLite: one file in the state directory, for one machine. A damaged file is never used or overwritten."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import quote

import structlog
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from tokka.errors import ConfigurationError, StartupError, is_lasting
from tokka.store import keys, salvage
from tokka.store.database import failure, failures
from tokka.store.errors import Damaged, NotWritable, WithoutLocks
from tokka.store.migration import migrate, missing
from tokka.store.rows import KeyRow

log = structlog.get_logger("tokka.store")

NAME = "tokka.db"
_BESIDE = ("-wal", "-shm")


class SqliteDatabase:
    """A SQLite database. `busy_s`: seconds that a statement waits for another program's transaction."""

    def __init__(self, folder: Path, busy_s: float) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._busy_s = busy_s
        self._engine: Engine | None = None
        # The open file and its log, and when the file itself was last written.
        self._inode: tuple[int, int] | None = None
        self._log_inode: tuple[int, int] | None = None
        self._written_ns = 0

    @property
    def place(self) -> str:
        return str(self._path)

    def open(self, known: Sequence[KeyRow] | None, *, create: bool = True) -> None:
        at_start = known is None
        with failures():
            # Before the lock, which would create a file in the folder.
            if not create and not self._path.exists() and not self._set_aside_before():
                raise missing(self.place)
        try:
            with failures(), self._locked(at_start=at_start):
                self._leave_replaced()
                self._ensure_sound(known)
                self.close()
                self._engine = self._create_engine(self._path)
                with self._engine.begin() as connection:
                    migrate(connection, self.place)
                self._remember()
        except WithoutLocks as error:
            # SQLite leaves an empty file if it finds no locks.
            if at_start and not (self._path.exists() and self._path.stat().st_size):
                raise NotWritable(f"cannot store keys and usage in {self._folder}: {error.reason}") from None
            raise

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Connection]:
        assert self._engine, "not opened"
        self._check_file()
        with failures(), self._engine.connect().execution_options(tokka_write=write) as connection, connection.begin():
            yield connection
        if write:
            # The file may have been deleted or replaced during the write.
            self._check_same()

    def version(self) -> int | None:
        assert self._engine, "not opened"
        self._check_file()
        with failures(), contextlib.closing(self._engine.raw_connection()) as connection:
            driver = cast(sqlite3.Connection, connection.driver_connection)
            ((version,),) = driver.execute("PRAGMA data_version")
        return int(version)

    def close(self) -> None:
        if self._engine:
            with contextlib.suppress(sqlite3.Error):
                self._engine.dispose()
            self._engine = None

    # -- the file -----------------------------------------------------------------------------------------------

    def _check_file(self) -> None:
        """Raise Damaged if the file was deleted, replaced or overwritten. A connection would not notice."""
        if self._check_same().st_mtime_ns != self._written_ns:
            # The cause is a checkpoint, of this or another program, or damage.
            if damage := _damage_of(self._path, self._busy_s):
                raise Damaged(damage)
            self._remember()

    def _check_same(self) -> os.stat_result:
        try:
            facts = self._path.stat()
        except FileNotFoundError:
            raise Damaged("the file was deleted") from None
        except OSError as error:
            raise failure(error) from None
        if (facts.st_dev, facts.st_ino) != self._inode:
            raise Damaged("the file was replaced")
        return facts

    def _remember(self) -> None:
        self._inode, self._log_inode = _inode_of(self._path), _inode_of(self._beside("-wal"))
        self._written_ns = self._path.stat().st_mtime_ns

    def _leave_replaced(self) -> None:
        """Close the connection if another file has replaced the open one.

        SQLite then leaves the log in the folder alone. If that is still our own log, delete it: SQLite would write it
        into the new file.
        """
        if not self._engine or not self._path.exists() or _inode_of(self._path) == self._inode:
            return
        self.close()
        if self._log_inode and _inode_of(self._beside("-wal")) == self._log_inode:
            for suffix in _BESIDE:
                self._beside(suffix).unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return Path(f"{self._path}{suffix}")

    @contextmanager
    def _locked(self, *, at_start: bool) -> Iterator[None]:
        """Lock the folder: two programs may start at once, and both may find the file missing or damaged."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / f"{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._not_writable(error) if at_start else failure(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _not_writable(self, error: OSError) -> ConfigurationError:
        reason = (error.strerror or str(error)).lower()
        if os.path.exists(self._path):
            return ConfigurationError(
                f"cannot write next to the database {self.place}: {reason}; SQLite needs files there"
            )
        return NotWritable(
            f"cannot store keys and usage in {self._folder}: {reason}; choose another --state-dir",
            is_temporary=not is_lasting(error),
        )

    def _ensure_sound(self, known: Sequence[KeyRow] | None) -> None:
        """Ensure that an undamaged file exists. Blocks while the readable rows of a damaged file are copied."""
        if self._path.exists():
            damage = _damage_of(self._path, self._busy_s)
            if damage:
                self._replace(damage, known)
            return
        if known is None:
            if aside := self._set_aside_before():
                raise self._no_keys(aside[0])
            self._build(salvage.Salvage(), (), over=self._set_aside_rests)
        else:
            self._replace("the file was deleted", known)

    def _replace(self, damage: str, known: Sequence[KeyRow] | None) -> None:
        found = self._salvage()
        self.close()
        if known is None and not found.has_keys:
            raise self._no_keys(self._set_aside(damage, found))
        self._build(found, known or (), over=lambda: self._set_aside(damage, found))

    def _salvage(self) -> salvage.Salvage:
        """Read the readable rows. The open connection comes first, since it may hold data that the file has lost."""
        if self._engine:
            with contextlib.suppress(Exception):
                connection = self._engine.raw_connection()
                try:
                    found = salvage.read(cast(sqlite3.Connection, connection.driver_connection))
                finally:
                    connection.close()
                if found.has_keys:
                    return found
        if not self._path.exists() or not self._path.stat().st_size:
            return salvage.Salvage(lost={"keys", "usage"})
        with contextlib.closing(_connect(self._path, self._busy_s)) as fresh:
            return salvage.read(fresh)

    def _set_aside_before(self) -> list[Path]:
        """Return the damaged files that were set aside earlier, oldest first."""
        return sorted(self._folder.glob(f"{NAME}.corrupt-*"))

    def _set_aside(self, damage: str, found: salvage.Salvage) -> Path:
        """Rename the damaged file and its log, so that they can be examined later."""
        aside = self._path.with_name(f"{NAME}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
        for suffix in ("", *_BESIDE):
            with contextlib.suppress(FileNotFoundError):
                self._beside(suffix).rename(f"{aside}{suffix}")
        counts = {name: len(rows) for name, rows in found.rows.items()}
        log.warning(
            "database_set_aside",
            file=str(aside),
            damage=damage,
            keys_read=counts.get("keys", 0),
            usage_rows_read=counts.get("usage", 0),
            incomplete=sorted(found.lost & {"keys", "usage"}),
        )
        return aside

    def _set_aside_rests(self) -> None:
        # A log is left of a file that somebody removed. SQLite would write it into the new file.
        if any(self._beside(suffix).exists() for suffix in _BESIDE):
            self._set_aside("the file was deleted", salvage.Salvage())

    def _no_keys(self, aside: Path) -> StartupError:
        return StartupError(
            f"the database {self.place} was damaged, and no key can be read from it; the damaged file is {aside}: "
            f"restore a backup as {NAME}, or remove {aside.name} to start without any key"
        )

    def _build(self, found: salvage.Salvage, known: Sequence[KeyRow], over: Callable[[], object]) -> None:
        """Write the file under a temporary name, then rename it, so that it is always complete.

        `over` moves the old file away, right before the rename.
        """
        new = self._path.with_name(f"{NAME}.new")
        new.unlink(missing_ok=True)
        try:
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise self._not_writable(error) from None
        engine = self._create_engine(new, journal="DELETE")
        try:
            with engine.begin() as connection:
                migrate(connection, self.place)
                salvage.write(found, connection)
                keys.restore(connection, known)
        finally:
            engine.dispose()
        over()
        new.rename(self._path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # -- connections --------------------------------------------------------------------------------------------

    def _create_engine(self, path: Path, journal: str = "WAL") -> Engine:
        def connect() -> sqlite3.Connection:
            connection = _connect(path, self._busy_s)
            # FULL: in WAL mode, lower levels lose the last commits in a power failure, for example a key's revocation.
            # It costs one fsync a commit, at most two a second, on a separate thread.
            for pragma in (f"journal_mode = {journal}", "synchronous = FULL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}")
            return connection

        # One connection, kept open: the data it has read survives the loss of the file for a while.
        engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=0)

        def begin(connection: Connection) -> None:
            # A reader must not wait for a writer. A writer locks at once: if it read first, it might find that it can
            # no longer write.
            writes = connection.get_execution_options().get("tokka_write", True)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        event.listen(engine, "begin", begin)
        return engine


def _inode_of(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_dev, facts.st_ino


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    # `rw` does not create a missing file.
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=busy_s, isolation_level=None, check_same_thread=False
    )


def _damage_of(path: Path, busy_s: float) -> str | None:
    """Return the damage to the file if it affects keys, else None. Raises Unavailable if it cannot be checked now."""
    if path.stat().st_size == 0:
        return "the file is empty"
    with contextlib.closing(_connect(path, busy_s)) as connection:
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in {"keys", "state"} & tables:
                ((verdict, *_), *_) = connection.execute(f"PRAGMA quick_check({table})")
                if verdict != "ok":
                    return " ".join(str(verdict).split())
        except sqlite3.Error as error:
            reason = failure(error)
            if isinstance(reason, Damaged):
                return reason.reason
            raise reason from None
    # The migration handles files of other revisions.
    return None if {"keys", "alembic_version"} & tables else "the file holds no keys"

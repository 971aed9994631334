"""SQLite: one file in the state directory, for one machine. Nothing damaged is ever used or overwritten."""

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
from tokka.store.failures import Damaged, NotWritable, WithoutLocks
from tokka.store.migration import migrate, missing
from tokka.store.rows import KeyRow

log = structlog.get_logger("tokka.store")

NAME = "tokka.db"
_BESIDE = ("-wal", "-shm")


class SqliteDatabase:
    """`busy_s`: how long a statement waits for another program's transaction."""

    def __init__(self, folder: Path, busy_s: float) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._busy_s = busy_s
        self._engine: Engine | None = None
        # Which file is open, and when its main part was last written.
        self._inode: tuple[int, int] | None = None
        self._log_inode: tuple[int, int] | None = None
        self._written_ns = 0

    @property
    def place(self) -> str:
        return str(self._path)

    def open(self, known: Sequence[KeyRow] | None, *, create: bool = True) -> None:
        at_start = known is None
        with failures():
            # Before the lock, which is a file in the folder.
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
            # An empty file is what SQLite has left of such a try.
            if at_start and not (self._path.exists() and self._path.stat().st_size):
                raise NotWritable(f"cannot keep keys and usage in {self._folder}: {error.reason}") from None
            raise

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Connection]:
        assert self._engine, "not opened"
        self._check_file()
        with failures(), self._engine.connect().execution_options(tokka_write=write) as connection, connection.begin():
            yield connection
        if write:
            # Else it may have gone into a file that is no longer there.
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
        """Raise Damaged if the file is gone, or another one, or was overwritten. A connection would not notice."""
        if self._check_same().st_mtime_ns != self._written_ns:
            # A checkpoint, ours or another program's; or damage.
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
        """Close the connection to a file that another one has replaced. SQLite leaves alone what lies beside that; but
        our own log, if it is still there, would be written into the new file."""
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
        """Hold the folder: two programs may start at once, and both may find the file missing or damaged."""
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
            return ConfigurationError(f"cannot write beside the database {self.place}: {reason}; it is kept there")
        return NotWritable(
            f"cannot keep keys and usage in {self._folder}: {reason}; choose another --state-dir",
            is_temporary=not is_lasting(error),
        )

    def _ensure_sound(self, known: Sequence[KeyRow] | None) -> None:
        """See to it that there is a file to open. Blocks while what can be read of a damaged one is carried over."""
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
        """Read what can be read: by the connection there is, which may still hold what the file does not."""
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
        """Return the damaged files that were set aside, oldest first."""
        return sorted(self._folder.glob(f"{NAME}.corrupt-*"))

    def _set_aside(self, damage: str, found: salvage.Salvage) -> Path:
        """Rename what is there, so that whoever wants to know can look at it."""
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
        # Of a file that somebody removed: SQLite would write them into the new one.
        if any(self._beside(suffix).exists() for suffix in _BESIDE):
            self._set_aside("the file was deleted", salvage.Salvage())

    def _no_keys(self, aside: Path) -> StartupError:
        return StartupError(
            f"the database {self.place} was damaged and no key can be read from it; what is left is {aside}: put a "
            f"backup in the place of {NAME}, or remove {aside.name} to start without any key"
        )

    def _build(self, found: salvage.Salvage, known: Sequence[KeyRow], over: Callable[[], object]) -> None:
        """Make the file under another name: in its place it is complete or not there. `over` clears the place."""
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
            # FULL: in WAL mode anything less loses the last commits with the machine's power, a revoked key's among
            # them. It costs one fsync a commit, two a second at most, on a thread of its own.
            for pragma in (f"journal_mode = {journal}", "synchronous = FULL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}")
            return connection

        # One connection, kept open: what it has read survives the file for a while.
        engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=0)

        def begin(connection: Connection) -> None:
            # A reader must not wait for a writer. A writer takes its place at once: one that read first might find
            # that it cannot write any more.
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
    # `rw` makes no file where there is none.
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=busy_s, isolation_level=None, check_same_thread=False
    )


def _damage_of(path: Path, busy_s: float) -> str | None:
    """Return what is wrong with the file, as far as keys are concerned. Raises Unavailable if it cannot be told now."""
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
    # A file of another revision is the migration's business.
    return None if {"keys", "alembic_version"} & tables else "the file holds no keys"

"""The interface that both databases implement, and the conversion of the drivers' errors."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tokka.errors import NO_LOCKS, is_lasting
from tokka.store.errors import Damaged, Unavailable, WithoutLocks
from tokka.store.rows import KeyRow

# SQLite's error codes of a damaged file, and of a file that the program may not write.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NOT_ALLOWED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
# SQLite's error codes on a file system without locks, or without memory that programs can share.
_WITHOUT_LOCKS = {
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
}
# PostgreSQL's classes of temporary errors: connection, resources, objects in use, operator, system.
_PASSING = ("08", "53", "55", "57", "58")
# Texts of lasting errors without an SQLSTATE: the server refused the connection.
_REFUSED = re.compile("authentication failed|does not exist|no pg_hba.conf entry")
# Maximum characters of a driver's text in our messages.
_MAX_REASON_CHARS = 200


class Database(Protocol):
    """One database of keys and usage. All methods block, for seconds at worst, so only threads call them."""

    @property
    def place(self) -> str:
        """The database's location for messages, without secrets."""

    def open(self, known: Sequence[KeyRow] | None, *, create: bool = True) -> None:
        """Reconnect, migrate, and repair the database if possible.

        `known`: the keys in memory, which a repaired database must contain; None at the start. `create=False`: create
        nothing, and raise ConfigurationError if no database exists. Raises Unavailable, or StartupError if an operator
        must help.
        """

    def transaction(self, *, write: bool) -> AbstractContextManager[Connection]:
        """Open a short transaction that commits at its end. Raises Unavailable, or Damaged if only `open` can help.

        A commit whose confirmation is lost raises too, so every write must be safe to repeat.
        """

    def version(self) -> int | None:
        """Return a counter that changes when another process writes to the database; None if it has no counter.

        Raises as `transaction` does.
        """

    def close(self) -> None: ...


@contextmanager
def failures() -> Iterator[None]:
    """Convert the drivers' errors to Unavailable and its subclasses."""
    try:
        yield
    except DBAPIError as error:
        # Not the whole error, which contains the statement with its parameters.
        raise failure(error.orig or error) from None
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise failure(error) from None


def failure(error: BaseException) -> Unavailable:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0][:_MAX_REASON_CHARS]
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        # Extended codes hold the primary one in their lowest byte.
        if code & 0xFF in _DAMAGED:
            return Damaged(reason)
        if code in _WITHOUT_LOCKS:
            return WithoutLocks()
        return Unavailable(reason, is_temporary=code & 0xFF not in _NOT_ALLOWED)
    if isinstance(error, OSError):
        if error.errno in NO_LOCKS:
            return WithoutLocks()
        return Unavailable(reason, is_temporary=not is_lasting(error))
    state = getattr(error, "sqlstate", None)
    lasts = not state.startswith(_PASSING) if state else bool(_REFUSED.search(reason))
    return Unavailable(reason, is_temporary=not lasts)

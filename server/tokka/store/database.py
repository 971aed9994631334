"""What the rest of `store` asks of a database, whichever it is; and its errors in our words."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tokka.errors import NO_LOCKS, is_lasting
from tokka.store.failures import Damaged, Unavailable, WithoutLocks
from tokka.store.rows import KeyRow

# A lost commit must not look like one that failed, so all that is written can be written twice.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NOT_ALLOWED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
# What SQLite says on a file system that has no locks, or no memory that programs share.
_WITHOUT_LOCKS = {
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
}
# PostgreSQL's classes of errors that pass: connection, resources, objects in use, operator, system.
_PASSING = ("08", "53", "55", "57", "58")
# Without a state, when the server has refused the connection.
_REFUSED = re.compile("authentication failed|does not exist|no pg_hba.conf entry")
_MAX_REASON_CHARS = 200


class Database(Protocol):
    """All of it blocks, for seconds at worst: it is called from threads only."""

    @property
    def place(self) -> str:
        """Where it is, for messages, without secrets."""

    def open(self, known: Sequence[KeyRow] | None, *, create: bool = True) -> None:
        """Connect anew, migrate, and repair what can be. `known`: the keys in memory, which a repaired one shall hold;
        None at the start. `create=False`: leave a place without a database as it is, and raise ConfigurationError.
        Raises Unavailable, or StartupError if it can't be used without an operator."""

    def transaction(self, *, write: bool) -> AbstractContextManager[Connection]:
        """A short transaction, committed at its end. Raises Unavailable, or Damaged if only `open` can help."""

    def version(self) -> int | None:
        """Return a number that is another one after another program has written; None if only reading can tell. Raises
        as `transaction` does."""

    def close(self) -> None: ...


@contextmanager
def failures() -> Iterator[None]:
    """Turn the drivers' errors into ours."""
    try:
        yield
    except DBAPIError as error:
        # Not the whole error: that would show the statement with its parameters.
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

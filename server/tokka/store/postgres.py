"""PostgreSQL: one database for servers on several machines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from tokka.errors import ConfigurationError
from tokka.store.database import failures
from tokka.store.migration import migrate
from tokka.store.rows import KeyRow

_DRIVERS = ("postgres", "postgresql", "postgresql+psycopg")
# Maximum seconds to connect. libpq's shortest limit is 2 s.
_CONNECT_S = 3
_STATEMENT_MS = 5000
# Milliseconds until an unanswered packet ends the connection. Without a limit, a lost host blocks for 15 minutes.
_UNANSWERED_MS = 5000
_MIGRATION_MS = 60_000
# The part of a URL that SQLAlchemy reads as user and password.
_USER = re.compile(r"[\w+]+://(?:[^:/]*(?::[^@]*)?@)?")
_ESCAPES = "write @ : / ? # % in user and password as %40 %3A %2F %3F %23 %25"
# Number of the advisory lock that a migrating program holds: "Tokka" as a number.
_LOCK = 0x546F6B6B61


class PostgresDatabase:
    """A PostgreSQL database."""

    def __init__(self, url: str) -> None:
        self._url = _checked(url)
        self.place = f"{self._url.host or 'the local host'}/{self._url.database or ''}"
        self._engine: Engine | None = None

    def open(self, known: Sequence[KeyRow] | None, *, create: bool = True) -> None:
        if self._engine is None:
            self._engine = _create_engine(self._url)
        with failures(), self._engine.begin() as connection:
            connection.execute(text(f"SET LOCAL statement_timeout = {_MIGRATION_MS}"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            migrate(connection, self.place, create=create)

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Connection]:
        assert self._engine, "not opened"
        with failures(), self._engine.begin() as connection:
            yield connection

    def version(self) -> int | None:
        return None

    def close(self) -> None:
        if self._engine:
            self._engine.dispose()


def _checked(url: str) -> URL:
    """Return the parsed URL. Raises ConfigurationError without any part of the URL, which may be of the password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in _DRIVERS:
        raise ConfigurationError(f"--database-url must look like postgresql://user:password@host:5432/name; {_ESCAPES}")
    user = _USER.match(url)
    if "@" in url[user.end() if user else 0 :]:
        # The URL is valid, but the rest of the password has become the host, the database or an option.
        raise ConfigurationError(f"--database-url holds more than one @; {_ESCAPES}")
    return parsed.set(drivername="postgresql+psycopg")


def _create_engine(url: URL) -> Engine:
    ours: dict[str, Any] = {
        "connect_timeout": _CONNECT_S,
        "tcp_user_timeout": _UNANSWERED_MS,
        "application_name": "tokka",
    }
    engine = create_engine(
        url,
        # One thread uses it.
        pool_size=1,
        max_overflow=1,
        pool_timeout=_CONNECT_S,
        pool_pre_ping=True,
        # Options in the URL take precedence.
        connect_args={name: value for name, value in ours.items() if name not in url.query}
        # A connection pooler in between may not support prepared statements.
        | {"prepare_threshold": None},
    )

    def limit_statements(connection: Any, _: Any) -> None:
        # Not through `options`, which connection poolers refuse.
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {_STATEMENT_MS}")
        connection.commit()

    event.listen(engine, "connect", limit_statements)
    return engine

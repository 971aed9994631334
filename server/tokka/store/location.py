"""Select the database that the settings name."""

from __future__ import annotations

import re
from pathlib import Path

from tokka.errors import ConfigurationError
from tokka.settings import expanded
from tokka.store.database import Database
from tokka.store.errors import NotWritable

# Matches a URL that was given as a path. Paths lose one of the two slashes.
_URL = re.compile(r"[A-Za-z][\w+]+:/")


def database_at(url: str | None, folder: Path, busy_s: float) -> Database:
    """Return the database, not yet opened. Raises ConfigurationError for a wrong URL, NotWritable without a folder."""
    if url is None:
        if _URL.match(str(folder)):
            # The message omits the URL, which may contain a password.
            raise ConfigurationError("--state-dir must be a folder; give a URL as --database-url")
        from tokka.store.sqlite import SqliteDatabase  # noqa: PLC0415

        try:
            return SqliteDatabase(expanded(folder), busy_s)
        except ValueError as error:
            raise NotWritable(f"cannot store keys and usage: {error}; give --state-dir, or set HOME") from None
    # Imported only when needed, since its driver is a separate library.
    from tokka.store.postgres import PostgresDatabase  # noqa: PLC0415

    return PostgresDatabase(url)

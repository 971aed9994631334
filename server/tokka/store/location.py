"""Where keys and usage are kept: the database that the settings name."""

from __future__ import annotations

import re
from pathlib import Path

from tokka.errors import ConfigurationError
from tokka.store.database import Database

# A path has lost one of the two slashes.
_URL = re.compile(r"[A-Za-z][\w+]+:/")


def database_at(url: str | None, folder: Path, busy_s: float) -> Database:
    """Return it, not yet opened. Raises ConfigurationError for a URL of something else."""
    if url is None:
        if _URL.match(str(folder)):
            # Without the URL: it may hold a password.
            raise ConfigurationError("--state-dir must be a folder; give a URL as --database-url")
        from tokka.store.sqlite import SqliteDatabase  # noqa: PLC0415

        return SqliteDatabase(folder.expanduser().absolute(), busy_s)
    # Only now: its driver is a library of its own.
    from tokka.store.postgres import PostgresDatabase  # noqa: PLC0415

    return PostgresDatabase(url)

"""Where keys and usage are kept: the database that the settings name."""

from __future__ import annotations

from pathlib import Path

from tokka.store.database import Database


def database_at(url: str | None, folder: Path, busy_s: float) -> Database:
    """Return it, not yet opened. Raises ConfigurationError for a URL of something else."""
    if url is None:
        from tokka.store.sqlite import SqliteDatabase  # noqa: PLC0415

        return SqliteDatabase(folder.expanduser().absolute(), busy_s)
    # Only now: its driver is a library of its own.
    from tokka.store.postgres import PostgresDatabase  # noqa: PLC0415

    return PostgresDatabase(url)

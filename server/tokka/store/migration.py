"""Migrate a database to the newest revision, in an exclusive transaction that the caller opens."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from tokka import __version__
from tokka.errors import ConfigurationError

_FOLDER = Path(__file__).parent / "migrations"


def missing(place: str) -> ConfigurationError:
    """Return the error of a command that needs an existing database."""
    return ConfigurationError(
        f"there is no Tokka database at {place}; check --state-dir and --database-url "
        "(`tokka serve` and `tokka keys create` create a new database)"
    )


def revisions() -> list[str]:
    """Return the revisions that this program knows, oldest first, from the names of their files."""
    return sorted(path.stem[1:5] for path in (_FOLDER / "versions").glob("r*.py"))


def migrate(connection: Connection, place: str, *, create: bool = True) -> None:
    """Migrate the database. Raises ConfigurationError if a newer program made it.

    `create=False`: also raise ConfigurationError if the database has no tables yet.
    """
    current = _current(connection)
    if current is None and not create:
        raise missing(place)
    known = revisions()
    if current == known[-1]:
        return
    if current is not None and current not in known:
        raise ConfigurationError(
            f"the database {place} was made by a newer Tokka than this one ({__version__} does not know its revision "
            f"{current[:32]}); run that version, or give another --state-dir or --database-url"
        )
    # Imported only when needed: it takes as long to import as the rest of `tokka keys` takes to run.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found

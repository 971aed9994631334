"""Shared by `tokka keys`, `tokka downtime` and `tokka usage`: the database options, and errors as one line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokka.settings import load_settings, read_database_url

if TYPE_CHECKING:
    from tokka.accounts.ledger import Ledger

StateDir = Annotated[Path | None, typer.Option(help="The server's state folder.", show_default=False)]
DatabaseUrl = Annotated[
    str | None, typer.Option(help="The server's PostgreSQL URL, if it has one.", show_default=False)
]
Config = Annotated[Path | None, typer.Option(help="The server's config file.", show_default=False)]

# Maximum seconds to wait for another process's transaction. A server's transaction takes milliseconds.
_BUSY_S = 10.0
_WRONG_USAGE = 2


@contextlib.contextmanager
def opened(
    state_dir: Path | None, database_url: str | None, config: Path | None, *, create: bool = False
) -> Iterator[Ledger]:
    """Yield the ledger of the database that `tokka serve` would use with these options.

    Only commands that add something create a missing database. A mistyped path must not look like an empty database.
    """
    import structlog

    from tokka.accounts.ledger import open_ledger
    from tokka.cli.options import given

    before = structlog.get_config()
    # Log lines go to stderr: stdout holds only the command's result.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        with one_line():
            settings = load_settings(given({"state_dir": state_dir, "database_url": database_url}), config)
            ledger = open_ledger(read_database_url(settings), settings.state_dir, _BUSY_S, create=create)
            with contextlib.closing(ledger):
                yield ledger
    finally:
        structlog.configure(**before)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Print an error that the operator can fix as one line on stderr, and exit with code 2."""
    from tokka.errors import StartupError, TokkaError
    from tokka.store.errors import Unavailable

    try:
        yield
    except Unavailable as error:
        fail(f"cannot use the database: {error.reason}")
    except TokkaError as error:
        fail(error.message)
    except StartupError as error:
        fail(str(error))


def fail(message: str) -> None:
    """Print an error on stderr and exit with code 2."""
    print(f"tokka: {message}", file=sys.stderr)
    raise typer.Exit(_WRONG_USAGE)

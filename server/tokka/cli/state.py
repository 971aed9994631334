"""What `tokka keys`, `tokka downtime` and `tokka usage` share: where the database is, and errors as one line."""

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

StateDir = Annotated[Path | None, typer.Option(help="Where the server keeps its keys.", show_default=False)]
DatabaseUrl = Annotated[str | None, typer.Option(help="The server's PostgreSQL, if it has one.", show_default=False)]
Config = Annotated[Path | None, typer.Option(help="The server's config file.", show_default=False)]

# A server's transaction takes milliseconds; people wait longer than servers.
_BUSY_S = 10.0
_WRONG_USAGE = 2


@contextlib.contextmanager
def opened(
    state_dir: Path | None, database_url: str | None, config: Path | None, *, create: bool = False
) -> Iterator[Ledger]:
    """Yield the ledger of the database that `tokka serve` would use with these options.

    Only commands that add something create a database: a mistyped path must not look like an empty one.
    """
    import structlog

    from tokka.accounts.ledger import open_ledger
    from tokka.cli.options import given

    before = structlog.get_config()
    # What is printed is the answer; what is told besides goes elsewhere.
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
    """End the program with one line on stderr for what an operator can do something about."""
    from tokka.errors import StartupError, TokkaError
    from tokka.store.failures import Unavailable

    try:
        yield
    except Unavailable as error:
        fail(f"cannot use the database: {error.reason}")
    except TokkaError as error:
        fail(error.message)
    except StartupError as error:
        fail(str(error))


def fail(message: str) -> None:
    print(f"tokka: {message}", file=sys.stderr)
    raise typer.Exit(_WRONG_USAGE)

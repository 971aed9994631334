"""`tokka downtime`: maintenance windows in the state database. Running servers read changes within a second."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from tokka.cli.state import Config, DatabaseUrl, StateDir, fail, opened
from tokka.protocol.times import zoned_moment_of

app = typer.Typer(no_args_is_help=True, help="Maintenance windows: add, list, remove.")

_FORMS = "2026-12-31T18:00+02:00, 2026-12-31T16:00Z, or a time from now: 2d, 12h, 30m"
_COLUMNS = ("id", "begin", "end", "status", "reason")


@app.command()
def add(
    *,
    begin: Annotated[str, typer.Option(help=f"{_FORMS}.")] = "0m",
    end: Annotated[str, typer.Option(help=f"{_FORMS}. Then the server accepts requests again.")],
    reason: Annotated[str, typer.Option(help="Reason that users see, one line.")],
    state_dir: StateDir = None,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """Add a maintenance window and print its id.

    From begin to end, new requests get 503 with both times and the reason. In-flight requests continue.
    """
    from tokka.accounts.downtimes import new_downtime

    now = datetime.now(UTC)
    try:
        downtime = new_downtime(_moment("begin", begin, now), _moment("end", end, now), reason, int(now.timestamp()))
    except ValueError as error:
        fail(f"--{error}")
        raise
    with opened(state_dir, database_url, config, create=True) as ledger:
        ledger.add_downtime(downtime)
    print(downtime.id)


@app.command("list")
def list_downtimes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    state_dir: StateDir = None,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """List all windows, including past ones. Times are UTC."""
    from tokka.accounts.downtimes import downtime_object
    from tokka.cli.table import print_table

    with opened(state_dir, database_url, config) as ledger:
        downtimes = [downtime_object(downtime, time.time()) for downtime in ledger.all_downtimes()]
    if as_json:
        print(json.dumps(downtimes, indent=2))
    else:
        print_table(_COLUMNS, [[downtime[name] for name in _COLUMNS] for downtime in downtimes])


@app.command()
def remove(
    downtime_id: str, state_dir: StateDir = None, database_url: DatabaseUrl = None, config: Config = None
) -> None:
    """Remove a window. If it has begun, running servers accept requests again within 2 s."""
    with opened(state_dir, database_url, config) as ledger:
        is_removed = ledger.remove_downtime(downtime_id)
    if is_removed:
        print(f"removed {downtime_id}")
    else:
        fail(f"downtime {downtime_id[:64]!r} not found; `tokka downtime list` shows all")


def _moment(name: str, text: str, now: datetime) -> int:
    """Return an option's time in seconds since 1970. Raises ValueError that begins with the option's name."""
    try:
        return int(zoned_moment_of(text, now).timestamp())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None

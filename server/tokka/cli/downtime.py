"""`tokka downtime`: windows in which nothing new runs, kept in the state database. Servers follow within a second."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from tokka.cli.state import Config, DatabaseUrl, StateDir, fail, opened
from tokka.protocol.moments import zoned_moment_of

app = typer.Typer(no_args_is_help=True, help="Windows without service: add, list, remove.")

_FORMS = "2026-12-31T18:00+02:00, 2026-12-31T16:00Z, or how far ahead: 2d, 12h, 30m"
_COLUMNS = ("id", "begin", "end", "status", "reason")


@app.command()
def add(
    *,
    begin: Annotated[str, typer.Option(help=f"{_FORMS}.")] = "0m",
    end: Annotated[str, typer.Option(help=f"{_FORMS}. From then on the server takes requests again.")],
    reason: Annotated[str, typer.Option(help="What users are told: one line.")],
    state_dir: StateDir = None,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """Refuse new requests from begin to end, with 503, both times and the reason; what runs goes on. Prints its id."""
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
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    state_dir: StateDir = None,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """List all windows, over ones, too. Times are UTC."""
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
    """Remove a window. If it is under way, running servers take requests again within 2 s."""
    with opened(state_dir, database_url, config) as ledger:
        is_removed = ledger.remove_downtime(downtime_id)
    if is_removed:
        print(f"removed {downtime_id}")
    else:
        fail(f"there is no downtime {downtime_id[:64]!r}; `tokka downtime list` shows them")


def _moment(name: str, text: str, now: datetime) -> int:
    """Raises ValueError that begins with the name."""
    try:
        return int(zoned_moment_of(text, now).timestamp())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None

"""`tokka usage`: totals of requests and tokens from the state database."""

from __future__ import annotations

import json
import time
from typing import Annotated, Literal

import typer

from tokka.cli.state import Config, DatabaseUrl, StateDir, fail, one_line, opened


def usage(
    since: Annotated[str, typer.Option(help="Start: 2026-12-31, 2026-12-31T18:00Z, or a time ago: 30d, 12h.")] = "30d",
    until: Annotated[str | None, typer.Option(help="End, as --since. Default: now.", show_default=False)] = None,
    by: Annotated[str, typer.Option(help="key, tenant, model, day or hour; several with commas.")] = "key,model,day",
    format_: Annotated[Literal["table", "json", "csv"], typer.Option("--format")] = "table",
    state_dir: StateDir = None,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """Show totals of requests and tokens. The last second of a running server may be missing."""
    from pydantic import ValidationError

    from tokka.accounts.admin_views import columns_of, csv_of, report_query, usage_entries
    from tokka.cli.table import print_table
    from tokka.protocol.admin import UsageQuery

    options = {"since": "since", "until": "until", "group_by": "by"}
    try:
        asked = UsageQuery(since=since, until=until, group_by=by)
    except ValidationError as error:
        name = options[str(error.errors()[0]["loc"][0])]
        hint = "key, tenant, model, day, hour" if name == "by" else "2026-12-31, 2026-12-31T18:00Z, 30d or 12h"
        fail(f"--{name}: write {hint}")
        raise
    with one_line():
        query = report_query(asked, time.time())
    with opened(state_dir, database_url, config) as ledger:
        entries = usage_entries(ledger.report(query))
    if format_ == "json":
        print(json.dumps(entries, indent=2))
    elif format_ == "csv":
        print(csv_of(entries, query.by), end="")
    else:
        columns = columns_of(query.by)
        print_table(columns, [[entry[name] for name in columns] for entry in entries])

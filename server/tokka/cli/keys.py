"""`tokka keys`: API keys in the state database. Running servers read changes within a second."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from tokka.cli.state import Config, DatabaseUrl, StateDir, fail, opened
from tokka.errors import InvalidRequest
from tokka.protocol.times import parse_duration, parse_time

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, rotate, revoke.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, in the format of /admin/keys.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the secret.")]
Limit = Annotated[int | None, typer.Option(show_default=False)]
_COLUMNS = ("id", "name", "tenant", "secret", "scopes", "models", "limits", "expires", "status")


@app.command()
def create(
    *,
    name: Annotated[str, typer.Option(help="Name of the key in lists.")],
    tenant: Annotated[str | None, typer.Option(help="Tenant for usage and fair shares. Default: the name.")] = None,
    scope: Annotated[str, typer.Option(help="inference, metrics or admin; several with commas.")] = "inference",
    rpm: Annotated[int | None, typer.Option(help="Maximum requests per minute, on each server.")] = None,
    tpm: Annotated[
        int | None, typer.Option(help="Maximum tokens per minute, prompt and completion together, on each server.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option(help="Maximum choices at once, queued ones included, on each server.")
    ] = None,
    max_completion_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per choice.")] = None,
    daily_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per UTC day, over all servers.")] = None,
    monthly_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per UTC month, over all servers.")] = None,
    models: Annotated[str | None, typer.Option(help="Allowed models, separated by commas. Default: all.")] = None,
    expires: Annotated[str | None, typer.Option(help="2026-12-31 (at 00:00 UTC), 30d or 12h. Default: never.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    state_dir: StateDir = None,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """Create a key. Prints its secret once, on the last line."""
    from tokka.accounts.admin_views import new_key

    limits = {
        "rpm": rpm,
        "tpm": tpm,
        "max_running": max_running,
        "max_completion_tokens": max_completion_tokens,
        "daily_tokens": daily_tokens,
        "monthly_tokens": monthly_tokens,
    }
    request: dict[str, Any] = {"name": name, "tenant": tenant, "scopes": _items(scope), "limits": limits}
    request["models"] = None if models is None else _items(models)
    request["expires_at"] = None if expires is None else _moment(expires)
    try:
        new = new_key(_checked(request), time.time())
    except InvalidRequest:
        fail("--expires: it must be in the future")
        raise
    with opened(state_dir, database_url, config, create=True) as ledger:
        is_first = all(row.status(time.time()) != "active" for row in ledger.all_keys())
        issued = ledger.create(new, int(time.time()))
    if is_first and not (as_json or quiet):
        print("This is the only active key: from now on, servers with this database ask everyone for a key.")
    _show(issued, as_json, quiet)


@app.command("list")
def list_keys(
    as_json: Json = False, state_dir: StateDir = None, database_url: DatabaseUrl = None, config: Config = None
) -> None:
    """List all keys, including revoked and expired ones. Shows only the beginning of each secret."""
    from tokka.accounts.admin_views import key_object
    from tokka.cli.table import print_table

    with opened(state_dir, database_url, config) as ledger:
        keys = [key_object(row, time.time()) for row in ledger.all_keys()]
    if as_json:
        print(json.dumps(keys, indent=2))
    else:
        print_table(_COLUMNS, [_cells(key) for key in keys])


@app.command()
def rotate(
    key_id: str,
    grace: Annotated[str, typer.Option(help="Time for which the old secret stays valid: 24h, 30m, 0m.")] = "24h",
    as_json: Json = False,
    quiet: Quiet = False,
    state_dir: StateDir = None,
    database_url: DatabaseUrl = None,
    config: Config = None,
) -> None:
    """Replace a key's secret. Prints the new secret once."""
    distance = parse_duration(grace)
    if distance is None or distance.days > 30:
        fail(f"--grace: {grace[:40]!r} is not a time of at most 30 days; write 24h, 7d or 0m")
    else:
        with opened(state_dir, database_url, config) as ledger:
            issued = ledger.rotate(key_id, int(distance.total_seconds()), int(time.time()))
        if issued is None:
            fail(f"key {key_id[:64]!r} not found, or revoked; `tokka keys list` shows all")
        else:
            _show(issued, as_json, quiet)


@app.command()
def revoke(key_id: str, state_dir: StateDir = None, database_url: DatabaseUrl = None, config: Config = None) -> None:
    """Revoke a key for good. Running servers refuse it within 2 s. In-flight requests finish."""
    with opened(state_dir, database_url, config) as ledger:
        row = ledger.revoke(key_id, int(time.time()))
    if row is None:
        fail(f"key {key_id[:64]!r} not found; `tokka keys list` shows all")
    else:
        print(f"revoked {row.id} ({row.name})")


def _show(issued: Any, as_json: bool, quiet: bool) -> None:
    from tokka.accounts.admin_views import issued_object

    if as_json:
        print(json.dumps(issued_object(issued, time.time())))
        return
    if not quiet:
        print(f"{issued.row.id} ({issued.row.name}). The secret is shown only once:")
    print(issued.secret)


def _checked(request: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from tokka.protocol.admin import NewKeyRequest

    try:
        return NewKeyRequest.model_validate(request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        names = [str(part) for part in first["loc"] if isinstance(part, str) and part != "limits"]
        option = {"scopes": "scope"}.get(names[0], names[0]) if names else "name"
        fail(f"--{option.replace('_', '-')}: {first['msg'][0].lower()}{first['msg'][1:]}")


def _moment(text: str) -> int:
    try:
        return int(parse_time(text, datetime.now(UTC), ahead=True).timestamp())
    except ValueError as error:
        fail(f"--expires: {error}")
        raise


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _cells(key: dict[str, Any]) -> list[str]:
    limits = " ".join(f"{name}={limit}" for name, limit in key["limits"].items() if limit is not None)
    expires = f"{datetime.fromtimestamp(key['expires_at'], UTC):%Y-%m-%d %H:%M}" if key["expires_at"] else ""
    return [
        key["id"],
        key["name"],
        key["tenant"],
        f"{key['prefix']}…",
        ",".join(key["scopes"]),
        ",".join(key["models"] or []),
        limits,
        expires,
        key["status"],
    ]

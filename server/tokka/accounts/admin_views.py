"""Requests and responses about keys and usage, for /admin and the command line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from tokka.accounts.calendar import HOUR_S
from tokka.core import KeyScope, Limits
from tokka.errors import InvalidRequest
from tokka.protocol.admin import NewKeyRequest, UsageQuery
from tokka.protocol.times import parse_time
from tokka.store.rows import GroupBy, KeyRow, ReportQuery, ReportRow

# Maximum rows of a usage report: about 10 MB of JSON and half a second of work.
MAX_ROWS = 50_000
_SUMS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens")
_GROUPS = {"day": "day", "hour": "hour", "tenant": "tenant", "key": "key_id", "model": "model"}


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that an operator asks for. `expires_at`: seconds since 1970, in UTC."""

    name: str
    tenant: str
    scopes: frozenset[KeyScope]
    limits: Limits = field(default_factory=Limits)
    models: frozenset[str] | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A key with its secret. The secret is stored nowhere else."""

    row: KeyRow
    secret: str


def new_key(request: NewKeyRequest, now_s: float) -> NewKey:
    """Return the key that a request asks for. Raises InvalidRequest if it would already have expired."""
    if request.expires_at is not None and request.expires_at <= now_s:
        raise InvalidRequest("Invalid value for 'expires_at': it must be in the future.", param="expires_at")
    return NewKey(
        name=request.name,
        tenant=request.tenant or request.name,
        scopes=frozenset(request.scopes),
        limits=Limits(**request.limits.model_dump()),
        models=None if request.models is None else frozenset(request.models),
        expires_at=request.expires_at,
    )


def key_object(row: KeyRow, now_s: float) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "key",
        "name": row.name,
        "tenant": row.tenant,
        "prefix": row.prefix,
        "scopes": sorted(row.scopes),
        "models": None if row.models is None else sorted(row.models),
        "limits": asdict(row.limits),
        "status": row.status(now_s),
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "previous_until": row.previous_until,
    }


def issued_object(issued: Issued, now_s: float) -> dict[str, Any]:
    return {**key_object(issued.row, now_s), "key": issued.secret}


def page_of(rows: Sequence[KeyRow], after: str | None, limit: int) -> tuple[list[KeyRow], bool]:
    """Return a page of keys, oldest first, and whether more follow. The page after an unknown key is empty."""
    ordered = sorted(rows, key=lambda row: (row.created_at, row.id))
    places = {row.id: place for place, row in enumerate(ordered, start=1)}
    first = 0 if after is None else places.get(after, len(ordered))
    return ordered[first : first + limit], first + limit < len(ordered)


def report_query(asked: UsageQuery, now_s: float) -> ReportQuery:
    """Return the query, with `since` rounded down and `until` rounded up to whole hours. Raises InvalidRequest."""
    now = datetime.fromtimestamp(int(now_s), UTC)
    since, until = (_moment(name, text, now) for name, text in (("since", asked.since), ("until", asked.until or "0m")))
    if since > until:
        raise InvalidRequest("Invalid value for 'since': it must not be after until.", param="since")
    first = int(since.timestamp()) // HOUR_S * HOUR_S
    end = int((until + timedelta(seconds=HOUR_S - 1)).timestamp()) // HOUR_S * HOUR_S
    if asked.until is None:
        # Exactly on the hour, a `since` of now would make the period empty.
        end = max(end, first + HOUR_S)
    by = cast("tuple[GroupBy, ...]", tuple(dict.fromkeys(asked.group_by.split(","))))
    return ReportQuery(first, end, by, MAX_ROWS + 1)


def _moment(name: str, text: str, now: datetime) -> datetime:
    try:
        return parse_time(text, now, ahead=False)
    except ValueError as error:
        raise InvalidRequest(f"Invalid value for '{name}': {error}.", param=name) from None


def usage_entries(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    """Return the rows as JSON objects. Raises InvalidRequest if there are more than `MAX_ROWS`."""
    if len(rows) > MAX_ROWS:
        raise InvalidRequest(
            f"The report has more than {MAX_ROWS} rows; shorten the period, or group by less.", param="group_by"
        )
    return [
        {
            **{name: _time(name, value) for name, value in row.group.items()},
            "requests": row.requests,
            "prompt_tokens": row.prompt_tokens,
            "cached_tokens": row.cached_tokens,
            "completion_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        }
        for row in rows
    ]


def columns_of(by: Sequence[str]) -> list[str]:
    return [*(column for name, column in _GROUPS.items() if name in by), *_SUMS]


def csv_of(entries: Sequence[dict[str, Any]], by: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(by), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in entry.items()} for entry in entries)
    return text.getvalue()


def _inert(value: object) -> object:
    """Prefix a text that a spreadsheet would run as a formula. Tenant names may come from outside, in tokens."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _time(name: str, value: str | int) -> str | int:
    if not isinstance(value, int) or name not in ("day", "hour"):
        return value
    moment = datetime.fromtimestamp(value, UTC)
    return f"{moment:%Y-%m-%d}" if name == "day" else f"{moment:%Y-%m-%dT%H:00Z}"

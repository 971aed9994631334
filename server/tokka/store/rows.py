"""Rows as the rest of the program sees them. Times are seconds since 1970, in UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokka.core import KeyScope, Limits

GroupBy = Literal["key", "tenant", "model", "day", "hour"]
KeyStatus = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One stored key; its secret is known by hash alone. Never deleted: usage keeps naming it."""

    id: str
    name: str
    tenant: str
    # The secret's first characters, for people to recognise it by.
    prefix: str
    # SHA-256, in hex.
    digest: str
    scopes: frozenset[KeyScope]
    created_at: int
    limits: Limits = field(default_factory=Limits)
    models: frozenset[str] | None = None
    expires_at: int | None = None
    revoked_at: int | None = None
    # The secret before the last rotation, good until then.
    previous_digest: str | None = None
    previous_until: int | None = None
    # The public halves of the keys that sign tokens of the two secrets, in hex; None: not known yet.
    token_key: str | None = None
    previous_token_key: str | None = None
    # Of the change that wrote this row; given by the database.
    revision: int = 0

    def status(self, now_s: float) -> KeyStatus:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now_s else "active"


@dataclass(frozen=True, slots=True)
class TokenKey:
    """What checks tokens of the secret that a key has by this digest; both in hex."""

    key_id: str
    digest: str
    token_key: str


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a key did with a model in one hour."""

    hour: int
    key_id: str
    tenant: str
    model: str
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Usage to write once, however often that is tried: `writer` numbers its batches."""

    writer: str
    number: int
    rows: tuple[UsageRow, ...]


@dataclass(frozen=True, slots=True)
class Periods:
    """The present day and month: when they began."""

    day: int
    month: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Tokens by key, in these periods, of the keys whose usage was written since the last time; `at`: when that was."""

    periods: Periods
    by_key: dict[str, tuple[int, int]]
    at: int


@dataclass(frozen=True, slots=True)
class Lease:
    """What a server holds of a key's quota, in tokens beyond the usage that is written."""

    tokens: int = 0
    # Of these: reserved by requests, or used and not written yet.
    in_use: int = 0
    # Beyond them, by requests that were refused.
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """Which database this is, and its last change of a key."""

    identity: str
    revision: int


# No database has been seen yet.
NOWHERE = State("", 0)


@dataclass(frozen=True, slots=True)
class ReportQuery:
    """Usage of `since <= hour < until`, summed up by these."""

    since: int
    until: int
    by: tuple[GroupBy, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One group's sums. `group`: key_id, tenant, model, and the hour or day in seconds, as far as asked for."""

    group: dict[str, str | int]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

"""Rows of the database as plain data. Times are seconds since 1970, in UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokka.core import KeyScope, Limits

GroupBy = Literal["key", "tenant", "model", "day", "hour"]
KeyStatus = Literal["active", "expired", "revoked"]
# Statuses of a response that is being generated.
UNFINISHED = ("queued", "in_progress")


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A stored key, with hashes of its secrets. It is never deleted, since rows of usage name it."""

    id: str
    name: str
    tenant: str
    # The secret's first characters, by which people recognise the key.
    prefix: str
    # SHA-256 of the secret, in hex.
    digest: str
    scopes: frozenset[KeyScope]
    created_at: int
    limits: Limits = field(default_factory=Limits)
    models: frozenset[str] | None = None
    expires_at: int | None = None
    revoked_at: int | None = None
    # SHA-256 of the secret before the last rotation, and when it expires.
    previous_digest: str | None = None
    previous_until: int | None = None
    # Public keys that verify the tokens of both secrets, in hex; None: not stored yet.
    token_key: str | None = None
    previous_token_key: str | None = None
    # Number of the change that wrote this row. The database assigns it.
    revision: int = 0

    def status(self, now_s: float) -> KeyStatus:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now_s else "active"


@dataclass(frozen=True, slots=True)
class TokenKey:
    """The public key that verifies the tokens of one secret. `digest`: SHA-256 of the secret. Both are in hex."""

    key_id: str
    digest: str
    token_key: str


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Usage of one model by one key in one hour."""

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
    """Usage to write exactly once, even if the write is repeated: each `writer` numbers its batches."""

    writer: str
    number: int
    rows: tuple[UsageRow, ...]


@dataclass(frozen=True, slots=True)
class Periods:
    """When the present day and month began."""

    day: int
    month: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Tokens of the day and the month by key, for keys with newly written usage. `at`: when these totals were read."""

    periods: Periods
    by_key: dict[str, tuple[int, int]]
    at: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A server's part of a key's quota, in tokens, in addition to written usage."""

    tokens: int = 0
    # Tokens that requests have reserved, or have used and are not written yet.
    in_use: int = 0
    # Further tokens that refused requests need.
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """The identity of a database, and the revision of its last change of a key."""

    identity: str
    revision: int


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A stored response. `response` and `items` are compressed documents.

    `size`: bytes of both and of the events, before compression.
    `seen_at`: milliseconds since 1970 of the last sign of life of the server that generates it.
    """

    id: str
    tenant: str
    status: str
    response: bytes
    items: bytes
    size: int
    seen_at: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a response. `response` is a compressed document; `size`: its bytes before compression."""

    id: str
    status: str
    response: bytes
    size: int


@dataclass(frozen=True, slots=True)
class EventChunk:
    """Consecutive events of a response, compressed. `first`: the number of the first one.

    `size`: bytes before compression.
    """

    first: int
    data: bytes
    size: int


# The state before any database was read.
NOWHERE = State("", 0)


@dataclass(frozen=True, slots=True)
class ReportQuery:
    """A query for usage of `since <= hour < until`, grouped by `by`. `limit`: maximum rows."""

    since: int
    until: int
    by: tuple[GroupBy, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class ReportRow:
    """Sums of one group. `group`: key_id, tenant, model, hour and day in seconds, as far as the query asks for them."""

    group: dict[str, str | int]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

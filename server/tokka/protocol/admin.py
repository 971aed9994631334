"""Requests and responses of /admin/keys and /admin/usage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from tokka.core import KeyScope
from tokka.protocol.common import WireModel
from tokka.protocol.times import MOMENT

# Maximum count: every JSON reader represents it exactly.
_MAX_COUNT = 2**53 - 1
_MAX_GRACE_S = 30 * 86400
DAY_S = 86400

Count = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
# Names appear in lists, logs and metrics: no control characters, no surrounding spaces.
Name = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[^\x00- \x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\x00- \x7f-\x9f])?$")
]
ModelName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Moment = Annotated[str, Field(max_length=20, pattern=MOMENT)]
Groups = Annotated[str, Field(max_length=64, pattern=r"^(key|tenant|model|day|hour)(,(key|tenant|model|day|hour))*$")]


class KeyLimits(WireModel):
    """Limits of a key; null or missing: none. Tokens include prompt and completion; days and months are UTC.

    Requests for more than `max_completion_tokens` get 400. Requests beyond the other limits get 429.
    """

    rpm: Count | None = Field(None, description="Maximum requests per minute, on each server.")
    tpm: Count | None = Field(None, description="Maximum tokens per minute, on each server.")
    max_running: Count | None = Field(None, description="Maximum in-flight and queued choices, on each server.")
    max_completion_tokens: Count | None = Field(None, description="Maximum completion tokens of a choice.")
    daily_tokens: Count | None = Field(None, description="Maximum tokens per day, on all servers together.")
    monthly_tokens: Count | None = Field(None, description="Maximum tokens per month, on all servers together.")


class NewKeyRequest(WireModel):
    """A key to create."""

    name: Name
    tenant: Name | None = Field(None, description="Tenant for usage and fair sharing. Default: the key's name.")
    scopes: list[KeyScope] = Field(["inference"], min_length=1, max_length=3)
    models: Annotated[list[ModelName], Field(min_length=1, max_length=256)] | None = Field(
        None, description="Served names that the key may use. Default: all."
    )
    limits: KeyLimits = Field(default_factory=lambda: KeyLimits.model_validate({}))
    expires_at: Count | None = Field(
        None, description="Expiry in seconds since 1970; must be in the future. Default: never."
    )


class RotateRequest(WireModel):
    """A new secret for a key."""

    grace_s: int = Field(DAY_S, ge=0, le=_MAX_GRACE_S, description="Seconds for which the old secret stays valid.")


class KeysQuery(WireModel):
    """The query of GET /admin/keys."""

    limit: Annotated[int, Field(strict=False, ge=1, le=1000)] = 100
    after: Annotated[str, Field(max_length=64)] | None = Field(None, description="The last id of the previous page.")


class UsageQuery(WireModel):
    """The query of GET /admin/usage."""

    since: Moment = Field("30d", description="Start as a day, a time or an age: 2026-12-31, 2026-12-31T18:00Z, 30d.")
    until: Moment | None = Field(None, description="End, written as `since`. Default: now.")
    group_by: Groups = Field("key,model,day", description="Comma-separated: key, tenant, model, day, hour.")
    format: Literal["json", "csv"] = "json"


class KeyObject(BaseModel):
    """A key without its secret. `prefix` is the beginning of the secret; `status` is the current state."""

    id: str
    object: Literal["key"]
    name: str
    tenant: str
    prefix: str
    scopes: list[KeyScope]
    models: list[str] | None
    limits: KeyLimits
    status: Literal["active", "expired", "revoked"]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    previous_until: int | None = Field(
        description="Expiry of the secret before the last rotation, in seconds since 1970."
    )


class IssuedKey(KeyObject):
    """A key with its secret, which only this response shows."""

    key: str


class KeyList(BaseModel):
    """A page of keys, oldest first."""

    object: Literal["list"]
    data: list[KeyObject]
    has_more: bool


class UsageEntry(BaseModel):
    """The sums of one group. Fields that are not in `group_by` are absent. `day` and `hour` are UTC."""

    day: str | None = None
    hour: str | None = None
    tenant: str | None = None
    key_id: str | None = None
    model: str | None = None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int


class UsageReport(BaseModel):
    """Usage by group."""

    object: Literal["list"]
    data: list[UsageEntry]

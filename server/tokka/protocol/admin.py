"""/admin/keys and /admin/usage: what may be asked, and the form of the answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from tokka.core import KeyScope
from tokka.protocol.common import WireModel
from tokka.protocol.moments import MOMENT

# What every number of JSON holds exactly.
_MAX_COUNT = 2**53 - 1
_MAX_GRACE_S = 30 * 86400
DAY_S = 86400

Count = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
# Shown in lists, logs and metrics: no control characters, no spaces around it.
Name = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[^\x00- \x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\x00- \x7f-\x9f])?$")
]
ModelName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Moment = Annotated[str, Field(max_length=20, pattern=MOMENT)]
Groups = Annotated[str, Field(max_length=64, pattern=r"^(key|tenant|model|day|hour)(,(key|tenant|model|day|hour))*$")]


class KeyLimits(WireModel):
    """Null or left out: no limit of its own. Tokens are prompt and completion together, days and months UTC's."""

    rpm: Count | None = Field(None, description="Requests a minute, on each server.")
    tpm: Count | None = Field(None, description="Tokens a minute, on each server.")
    max_running: Count | None = Field(None, description="Choices at once, waiting ones included, on each server.")
    max_completion_tokens: Count | None = Field(None, description="Tokens of one choice.")
    daily_tokens: Count | None = Field(None, description="Tokens a day, on all servers together.")
    monthly_tokens: Count | None = Field(None, description="Tokens a month, on all servers together.")


class NewKeyRequest(WireModel):
    name: Name
    tenant: Name | None = Field(None, description="Who is counted and shared between. Default: the name.")
    scopes: list[KeyScope] = Field(["inference"], min_length=1, max_length=3)
    models: Annotated[list[ModelName], Field(min_length=1, max_length=256)] | None = Field(
        None, description="Names it may use. Default: all that are served."
    )
    limits: KeyLimits = Field(default_factory=lambda: KeyLimits.model_validate({}))
    expires_at: Count | None = Field(None, description="Seconds since 1970; in the future. Default: never.")


class RotateRequest(WireModel):
    grace_s: int = Field(DAY_S, ge=0, le=_MAX_GRACE_S, description="How long the old secret stays good, in seconds.")


class KeysQuery(WireModel):
    limit: Annotated[int, Field(strict=False, ge=1, le=1000)] = 100
    after: Annotated[str, Field(max_length=64)] | None = Field(None, description="The last id of the page before.")


class UsageQuery(WireModel):
    since: Moment = Field("30d", description="A day, a time, or how long ago: 2026-12-31, 2026-12-31T18:00Z, 30d.")
    until: Moment | None = Field(None, description="As `since`. Default: now.")
    group_by: Groups = Field("key,model,day", description="Separated by commas: key, tenant, model, day, hour.")
    format: Literal["json", "csv"] = "json"


class KeyObject(BaseModel):
    """A key without its secret. `prefix` is how the secret begins; `status` is what came of it by now."""

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
    previous_until: int | None = Field(description="Until when the secret before the last rotation is good.")


class IssuedKey(KeyObject):
    """A key with its secret, which is shown this once."""

    key: str


class KeyList(BaseModel):
    object: Literal["list"]
    data: list[KeyObject]
    has_more: bool


class UsageEntry(BaseModel):
    """One group's sums: the fields it was grouped by are there, the others are not. `day` and `hour` are UTC."""

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
    object: Literal["list"]
    data: list[UsageEntry]

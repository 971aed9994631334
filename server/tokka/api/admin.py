"""/admin: keys, usage and drain. The authentication middleware has already checked the scope `admin`."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import structlog
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from tokka.accounts.admin_views import (
    csv_of,
    issued_object,
    key_object,
    new_key,
    page_of,
    report_query,
    usage_entries,
)
from tokka.api.deps import CurrentKey, CurrentServices, body_of, documented_body, documented_query, query_of
from tokka.api.document import errors
from tokka.errors import KeyNotFound
from tokka.protocol.admin import (
    IssuedKey,
    KeyList,
    KeyObject,
    KeysQuery,
    NewKeyRequest,
    RotateRequest,
    UsageQuery,
    UsageReport,
)

log = structlog.get_logger("tokka.admin")

router = APIRouter(tags=["operate"])

_KEY_ID = re.compile(r"key_[0-9a-f]{16}")
# The response holds a secret, so browsers and proxies must not store it.
_UNSTORED = {"cache-control": "no-store"}


@router.get(
    "/admin/keys",
    summary="List keys, oldest first",
    responses=errors(400, 401, 403),
    response_model=KeyList,
    openapi_extra=documented_query(KeysQuery),
)
async def list_keys(query: Annotated[KeysQuery, query_of(KeysQuery)], services: CurrentServices) -> dict[str, Any]:
    page, has_more = page_of(services.accounts.ring.rows, query.after, query.limit)
    now_s = time.time()
    return {"object": "list", "data": [key_object(row, now_s) for row in page], "has_more": has_more}


@router.post(
    "/admin/keys",
    status_code=201,
    summary="Create a key; only this response shows its secret",
    responses={201: {"model": IssuedKey}, **errors(400, 401, 403, 413, 415, 503)},
    openapi_extra=documented_body(NewKeyRequest, {"name": "alice", "limits": {"rpm": 60, "daily_tokens": 1_000_000}}),
)
async def create_key(
    body: Annotated[NewKeyRequest, body_of(NewKeyRequest)], services: CurrentServices, key: CurrentKey
) -> Response:
    issued = await services.accounts.create(new_key(body, time.time()))
    log.info("key_created", key_id=issued.row.id, tenant=issued.row.tenant, by=key.id)
    return JSONResponse(issued_object(issued, time.time()), 201, _UNSTORED)


@router.delete(
    "/admin/keys/{key_id}",
    summary="Revoke a key at once; it stays in lists and reports",
    responses=errors(401, 403, 404, 503),
    response_model=KeyObject,
)
async def revoke_key(key_id: str, services: CurrentServices, key: CurrentKey) -> dict[str, Any]:
    row = await services.accounts.revoke(_checked(key_id))
    log.info("key_revoked", key_id=row.id, tenant=row.tenant, by=key.id)
    return key_object(row, time.time())


@router.post(
    "/admin/keys/{key_id}/rotate",
    summary="Give a key a new secret; the old one stays valid for a grace period",
    responses={200: {"model": IssuedKey}, **errors(400, 401, 403, 404, 413, 415, 503)},
    openapi_extra=documented_body(RotateRequest, {"grace_s": 3600}),
)
async def rotate_key(
    key_id: str, body: Annotated[RotateRequest, body_of(RotateRequest)], services: CurrentServices, key: CurrentKey
) -> Response:
    issued = await services.accounts.rotate(_checked(key_id), body.grace_s)
    log.info("key_rotated", key_id=issued.row.id, tenant=issued.row.tenant, by=key.id)
    return JSONResponse(issued_object(issued, time.time()), 200, _UNSTORED)


@router.get(
    "/admin/usage",
    summary="Report requests and tokens, up to now by default",
    responses={
        200: {"model": UsageReport, "content": {"text/csv": {"schema": {"type": "string"}}}},
        **errors(400, 401, 403, 503),
    },
    openapi_extra=documented_query(UsageQuery),
)
async def read_usage(query: Annotated[UsageQuery, query_of(UsageQuery)], services: CurrentServices) -> Response:
    asked = report_query(query, time.time())
    entries = usage_entries(await services.accounts.report(asked))
    if query.format == "csv":
        return Response(csv_of(entries, asked.by), media_type="text/csv")
    return JSONResponse({"object": "list", "data": entries})


# Not in the OpenAPI document: a fuzzer or generated client that tries every operation would stop the server.
@router.post("/admin/drain", include_in_schema=False)
async def drain(services: CurrentServices) -> dict[str, object]:
    """Drain the server as SIGTERM does, for callers that cannot send a signal."""
    services.drain()
    return {"status": "draining", "open_requests": services.catalogue.open_requests}


def _checked(key_id: str) -> str:
    if not _KEY_ID.fullmatch(key_id):
        raise KeyNotFound(key_id)
    return key_id

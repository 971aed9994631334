"""Probes, metrics and version. None of them waits for an engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

import orjson
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from tokka import __version__
from tokka.admission.policy import RETRY_AFTER_S
from tokka.api.deps import CurrentServices, Services
from tokka.api.document import errors
from tokka.engine.replicas import SERVES, Progress
from tokka.errors import MAX_RETRY_AFTER_S
from tokka.protocol import sse
from tokka.protocol.models import Health, Version
from tokka.protocol.times import format_iso

router = APIRouter(tags=["operate"])
_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": Health, "description": "Not ready; says why, and when to retry"}
}

_EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


@router.get("/livez", summary="Can the process answer?")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get("/readyz", summary="Would a request be served now?", response_model=Health, responses=_NOT_READY)
@router.get("/health", summary="Same as /readyz", response_model=Health, responses=_NOT_READY)
async def readyz(services: CurrentServices) -> Response:
    progress = services.catalogue.progress()
    if services.catalogue.is_draining:
        return _health("draining", progress, ready=False)
    if downtime := services.accounts.downtimes.current(time.time()):
        left_s = min(MAX_RETRY_AFTER_S, math.ceil(downtime.end - time.time()))
        planned = replace(progress, detail=f"until {format_iso(downtime.end)}", retry_after_s=max(1, left_s))
        return _health("maintenance", planned, ready=False)
    return _health(progress.state, progress, ready=services.catalogue.is_ready)


@router.get(
    "/startupz",
    summary="Has the engine been ready once?",
    response_model=Health,
    responses={
        **_NOT_READY,
        200: {"description": "Ready once; with `Accept: text/event-stream` the phases as events", **_EVENTS},
    },
)
async def startupz(request: Request, services: CurrentServices) -> Response:
    if "text/event-stream" in request.headers.get("accept", ""):
        answer = StreamingResponse(_phases(services))
        answer.raw_headers = list(sse.HEADERS)
        return answer
    progress = services.catalogue.progress()
    return _health(progress.state, progress, services.catalogue.was_ready)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, responses=errors(401, 403))
async def metrics(services: CurrentServices) -> Response:
    services.metrics.look()
    # Rendering takes 60 ms with a thousand tenants.
    return Response(await asyncio.to_thread(services.metrics.render), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", summary="Versions of server and engine", response_model=Version)
async def version(services: CurrentServices) -> dict[str, str | None]:
    info = services.catalogue.main.replicas.info
    return {
        "version": __version__,
        "engine": info.engine if info else None,
        "engine_version": info.engine_version if info else None,
    }


def _health(status: str, progress: Progress, ready: bool) -> Response:
    retry_after_s = 0 if ready else progress.retry_after_s or RETRY_AFTER_S
    body = {"status": status, **asdict(progress), "retry_after_s": retry_after_s}
    del body["state"]
    headers = {} if ready else {"retry-after": str(retry_after_s)}
    return Response(orjson.dumps(body), 200 if ready else 503, headers, "application/json")


async def _phases(services: Services) -> AsyncIterator[bytes]:
    """Stream the phases of the current start until it ends.

    A long phase is sent repeatedly, so that proxies do not close the connection as idle.
    """
    async with aclosing(services.catalogue.changes(services.keep_alive_s)) as changes:
        async for progress in changes:
            yield sse.event(asdict(progress), "phase")
            if progress.state in SERVES or progress.phase == "stopped":
                return

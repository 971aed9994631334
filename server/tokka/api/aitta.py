"""Aitta's API, for its existing clients: models, workers, downtimes, and tokens in exchange for keys."""

from __future__ import annotations

import os
import time
from typing import Any, Literal

import psutil
from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse

from tokka.api.deps import CurrentKey, CurrentServices, Services
from tokka.api.document import oauth_errors
from tokka.core import Key
from tokka.dispatch.catalogue import ServedModel
from tokka.engine_facts import ModelInfo
from tokka.errors import WorkerNotFound
from tokka.protocol import aitta as documents
from tokka.protocol.times import format_iso


class HalResponse(JSONResponse):
    """A HAL resource."""

    # No charset parameter: aitta-client compares the whole content type.
    media_type = "application/hal+json"


async def _counted(services: CurrentServices, key: CurrentKey) -> None:
    services.allowances.count(key, time.monotonic())


async def _open(services: CurrentServices) -> None:
    services.accounts.downtimes.check(time.time())


router = APIRouter(tags=["aitta"], default_response_class=HalResponse)
_HAL: dict[str, Any] = {"response_model_exclude_none": True}
_ALWAYS = [Depends(_counted)]
# aitta-client calls these endpoints first, so their 503 tells it of a downtime.
_UNLESS_DOWN = [Depends(_open), Depends(_counted)]


@router.get(
    "/model",
    summary="List the served names",
    dependencies=_UNLESS_DOWN,
    responses=oauth_errors(401, 403, 429, 503),
    **_HAL,
)
async def list_models(services: CurrentServices, key: CurrentKey) -> documents.Collection:
    return documents.model_list(services.dispatcher.names(key))


@router.get(
    "/model/{model}",
    summary="Describe a served name; write a slash in it as ~",
    dependencies=_UNLESS_DOWN,
    responses=oauth_errors(401, 403, 404, 429, 503),
    **_HAL,
)
async def get_model(model: str, services: CurrentServices, key: CurrentKey) -> documents.ModelResource:
    name, served = _model_of(model, services, key)
    replicas = served.replicas
    info, workers = replicas.described(), [worker.id for worker in replicas.workers()]
    return documents.model_resource(name, info, workers, is_one=replicas.is_one)


@router.get(
    "/model/{model}/metadata",
    summary="Describe how a model is run",
    dependencies=_UNLESS_DOWN,
    responses=oauth_errors(401, 403, 404, 429, 503),
    **_HAL,
)
async def get_metadata(model: str, services: CurrentServices, key: CurrentKey) -> documents.ModelMetadata:
    name, served = _model_of(model, services, key)
    info = served.replicas.described()
    return documents.model_metadata(name, info, _machine(info) if _is_admin(key) else None, key.tenant)


@router.get(
    "/worker",
    summary="List the engines of each model: one, or of a fleet one for each replica",
    dependencies=_ALWAYS,
    responses=oauth_errors(401, 403, 429),
    **_HAL,
)
async def list_workers(services: CurrentServices, key: CurrentKey) -> documents.Collection:
    first: dict[ServedModel, str] = {}
    for name in services.dispatcher.names(key):
        # A model with several names is listed by the first that the key may use.
        first.setdefault(services.dispatcher.model(name, key), name)
    return documents.worker_list(
        [(name, worker.id) for served, name in first.items() for worker in served.replicas.workers()]
    )


@router.get(
    "/worker/{model}/{worker}",
    summary="Report the state of an engine, and when it will be ready",
    dependencies=_ALWAYS,
    responses=oauth_errors(401, 403, 404, 429),
    **_HAL,
)
async def get_worker(model: str, worker: str, services: CurrentServices, key: CurrentKey) -> documents.WorkerResource:
    name, served = _model_of(model, services, key)
    workers = {one.id: one for one in served.replicas.workers()}
    found = workers.get(documents.name_of(worker, list(workers)))
    if found is None:
        raise WorkerNotFound(
            f"The worker `{worker[:64]}` of this model was not found. GET /worker lists the current ones."
        )
    progress = found.progress
    # The load reveals the activity of other tenants.
    is_admin = _is_admin(key)
    return documents.WorkerResource(
        id=found.id,
        model=name,
        state=progress.state,
        phase=progress.phase,
        detail=progress.detail,
        started_at=format_iso(time.time() - progress.elapsed_s),
        retry_after_s=progress.retry_after_s,
        running=found.running if is_admin else None,
        waiting=found.waiting + served.admission.waiting_choices if is_admin else None,
        links=documents.worker_links(name, found.id),
    )


@router.get("/status", summary='"OK", or the current downtime', responses=oauth_errors(401, 403))
async def status(services: CurrentServices) -> Literal["OK"] | documents.Window:
    downtime = services.accounts.downtimes.current(time.time())
    return "OK" if downtime is None else documents.window(downtime)


@router.get("/downtimes", summary="List current and future downtimes", responses=oauth_errors(401, 403), **_HAL)
async def list_downtimes(services: CurrentServices) -> documents.DowntimeList:
    return documents.downtime_list(services.accounts.downtimes.not_over(time.time()))


@router.get(
    "/authenticate_with_key",
    summary="Exchange an API key for a short-lived token; tokens are refused",
    response_class=JSONResponse,
    responses={200: {"model": documents.AccessToken}, **oauth_errors(401, 403, 503)},
)
async def authenticate_with_key(request: Request, services: CurrentServices) -> JSONResponse:
    token = await services.accounts.issue(request.headers.get("authorization"))
    answer = documents.AccessToken(access_token=token.text, expires_in=token.expires_in)
    # The token is a credential, so browsers and proxies must not store it.
    return JSONResponse(answer.model_dump(exclude_none=True), headers={"cache-control": "no-store"})


def _model_of(segment: str, services: Services, key: Key) -> tuple[str, ServedModel]:
    """Return the served name of a path segment, and its model. Raises ModelNotFound if the key may not use it."""
    name = documents.name_of(segment, services.dispatcher.names(key))
    return name, services.dispatcher.model(name, key)


def _is_admin(key: Key) -> bool:
    return "admin" in key.scopes


def _machine(info: ModelInfo) -> documents.Resources:
    return documents.Resources(
        ram_mb=psutil.virtual_memory().total >> 20, num_gpus=info.gpus, num_cpus=len(os.sched_getaffinity(0))
    )

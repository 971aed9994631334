"""/admin/fleet: status, scale, drain and update. The authentication middleware has checked the scope `admin`."""

from __future__ import annotations

from typing import Annotated, Any

import structlog
from fastapi import APIRouter

from tokka.api.deps import CurrentKey, CurrentServices, Services, body_of
from tokka.api.document import errors
from tokka.errors import NoFleet
from tokka.fleet.fleet import Fleet
from tokka.protocol.fleet import DrainRequest, FleetStatus, FleetUpdate, ScaleRequest

log = structlog.get_logger("tokka.admin")

router = APIRouter(prefix="/admin/fleet", tags=["operate"])


@router.get(
    "",
    summary="List the models of a fleet with their replicas",
    responses=errors(401, 403, 404),
    response_model=FleetStatus,
)
async def read_status(services: CurrentServices) -> dict[str, Any]:
    return _status(_fleet(services))


# Not in the OpenAPI document, like /admin/drain: a fuzzer would stop replicas.
@router.post("/scale", include_in_schema=False)
async def scale(
    body: Annotated[ScaleRequest, body_of(ScaleRequest)], services: CurrentServices, key: CurrentKey
) -> dict[str, Any]:
    """Fix the number of replicas of a model, or let its requests decide again. Return the status."""
    fleet = _fleet(services)
    await fleet.scale(body.model, body.replicas)
    log.info("fleet_scaled", model=body.model, replicas=body.replicas, by=key.id)
    return _status(fleet)


@router.post("/drain", include_in_schema=False)
async def drain(
    body: Annotated[DrainRequest, body_of(DrainRequest)], services: CurrentServices, key: CurrentKey
) -> dict[str, Any]:
    """Drain one replica of a model, or all; the fleet starts others as needed. Return the status."""
    fleet = _fleet(services)
    await fleet.drain(body.model, body.replica)
    log.info("fleet_drained", model=body.model, replica=body.replica, by=key.id)
    return _status(fleet)


@router.post(
    "/update",
    summary="Read the fleet file again, and replace the replicas of models whose entry has changed",
    responses=errors(400, 401, 403, 404),
    response_model=FleetUpdate,
)
async def update(services: CurrentServices, key: CurrentKey) -> dict[str, list[str]]:
    replaced = await _fleet(services).update()
    log.info("fleet_updated", replaced=replaced, by=key.id)
    return {"replaced": replaced}


def _fleet(services: Services) -> Fleet:
    if services.fleet is None:
        raise NoFleet
    return services.fleet


def _status(fleet: Fleet) -> dict[str, Any]:
    return {"models": fleet.status()}

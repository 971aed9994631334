"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tokka.api.deps import CurrentKey, CurrentServices, Services
from tokka.api.document import errors
from tokka.errors import UnknownUrl
from tokka.protocol.models import ModelList, ModelObject, model_object

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the served names", responses=errors(401, 403), response_model=ModelList)
async def list_models(services: CurrentServices, key: CurrentKey) -> dict[str, Any]:
    return {"object": "list", "data": [_object(name, services) for name in services.dispatcher.names(key)]}


# `:path`, because hub ids contain slashes.
@router.get(
    "/v1/models/{model:path}",
    summary="Describe a served name",
    responses=errors(401, 403, 404),
    response_model=ModelObject,
)
async def get_model(model: str, services: CurrentServices, key: CurrentKey) -> dict[str, Any]:
    if not model:
        raise UnknownUrl("Unknown request URL: GET /v1/models/. Did you mean /v1/models?")
    services.dispatcher.check_model(model, key)
    return _object(model, services)


def _object(name: str, services: Services) -> dict[str, Any]:
    info = services.supervisor.info
    return model_object(name, services.started_s, info.max_model_len if info else None)

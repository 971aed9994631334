"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokka.api.deps import CurrentKey, CurrentServices, Services
from tokka.api.document import errors
from tokka.core import Key
from tokka.errors import UnknownUrl
from tokka.protocol.anthropic import models as anthropic
from tokka.protocol.models import ModelList, ModelObject, model_object

router = APIRouter(tags=["models"])


@router.get(
    "/v1/models",
    summary="List the served names; with the header `anthropic-version` in Anthropic's form",
    responses=errors(401, 403),
    response_model=ModelList | anthropic.AnthropicModelList,
)
async def list_models(request: Request, services: CurrentServices, key: CurrentKey) -> Response:
    models = [_object(name, services, request, key) for name in services.dispatcher.names(key)]
    return JSONResponse(anthropic.model_list(models) if _is_anthropic(request) else {"object": "list", "data": models})


# `:path`, because hub ids contain slashes.
@router.get(
    "/v1/models/{model:path}",
    summary="Describe a served name; with the header `anthropic-version` in Anthropic's form",
    responses=errors(401, 403, 404),
    response_model=ModelObject | anthropic.AnthropicModel,
)
async def get_model(model: str, request: Request, services: CurrentServices, key: CurrentKey) -> Response:
    if not model:
        raise UnknownUrl("Unknown request URL: GET /v1/models/. Did you mean /v1/models?")
    return JSONResponse(_object(model, services, request, key))


def _object(name: str, services: Services, request: Request, key: Key) -> dict[str, Any]:
    model = services.dispatcher.model(name, key)
    info = model.replicas.info
    length = info.max_model_len if info else None
    if _is_anthropic(request):
        return anthropic.model_object(name, services.started_s, length)
    return model_object(name, services.started_s, length, model.tasks, model.state)


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers

"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter

from tokka.api.deps import CurrentKey, CurrentServices, body_of, documented_body
from tokka.api.document import errors
from tokka.protocol.models import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize",
    summary="Count tokens as a generation would",
    responses=errors(400, 401, 403, 404, 413, 415, 503),
    response_model=TokenizeResponse,
    openapi_extra=documented_body(TokenizeRequest, {"prompt": "Hei maailma"}),
)
async def tokenize(
    body: Annotated[TokenizeRequest, body_of(TokenizeRequest)], services: CurrentServices, key: CurrentKey
) -> dict[str, Any]:
    tokens = await services.dispatcher.tokenize(body.model, body.to_prompt(), key)
    info = services.supervisor.info
    return {"tokens": tokens, "count": len(tokens), "max_model_len": info.max_model_len if info else None}


@router.post(
    "/detokenize",
    summary="Turn token ids into text",
    responses=errors(400, 401, 403, 404, 413, 415, 503),
    response_model=DetokenizeResponse,
    openapi_extra=documented_body(DetokenizeRequest, {"tokens": [1, 2, 3]}),
)
async def detokenize(
    body: Annotated[DetokenizeRequest, body_of(DetokenizeRequest)], services: CurrentServices, key: CurrentKey
) -> dict[str, Any]:
    return {"prompt": await services.dispatcher.detokenize(body.model, body.tokens, key)}

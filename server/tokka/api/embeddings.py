"""POST /v1/embeddings."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from tokka.api.deps import CurrentCall, documented_body
from tokka.api.document import errors
from tokka.api.respond import GenerationResponse
from tokka.protocol.embeddings import EmbeddingEncoder, EmbeddingList, EmbeddingRequest

router = APIRouter(tags=["embed"])
_ERRORS = errors(400, 401, 403, 404, 413, 415, 429, 503, 504)


@router.post(
    "/v1/embeddings",
    summary="Turn texts into vectors",
    responses={200: {"model": EmbeddingList}, **_ERRORS},
    openapi_extra=documented_body(EmbeddingRequest, {"model": "all-MiniLM-L6-v2", "input": ["Hei maailma"]}),
)
async def create_embeddings(call: CurrentCall) -> Response:
    return GenerationResponse(call, EmbeddingRequest, EmbeddingEncoder)

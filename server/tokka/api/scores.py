"""POST /v1/rerank and /v1/score."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from tokka.api.deps import CurrentCall, documented_body
from tokka.api.document import errors
from tokka.api.respond import GenerationResponse
from tokka.protocol.scores import Ranking, RerankEncoder, RerankRequest, ScoreEncoder, ScoreList, ScoreRequest

router = APIRouter(tags=["embed"])
_MODEL = "all-MiniLM-L6-v2"
_ERRORS = errors(400, 401, 403, 404, 413, 415, 429, 503, 504)
_RANKING = {200: {"model": Ranking}, **_ERRORS}
_RERANK_BODY = documented_body(
    RerankRequest, {"model": _MODEL, "query": "the capital of Finland", "documents": ["Helsinki", "Turku"]}
)


@router.post("/v1/rerank", summary="Rank documents for a query", responses=_RANKING, openapi_extra=_RERANK_BODY)
@router.post("/rerank", summary="Same as /v1/rerank", responses=_RANKING, openapi_extra=_RERANK_BODY)
@router.post("/v2/rerank", summary="Same as /v1/rerank", responses=_RANKING, openapi_extra=_RERANK_BODY)
async def rerank(call: CurrentCall) -> Response:
    return GenerationResponse(call, RerankRequest, RerankEncoder)


@router.post(
    "/v1/score",
    summary="Compare texts with each other",
    responses={200: {"model": ScoreList}, **_ERRORS},
    openapi_extra=documented_body(ScoreRequest, {"model": _MODEL, "text_1": "cat", "text_2": ["dog", "car"]}),
)
async def score(call: CurrentCall) -> Response:
    return GenerationResponse(call, ScoreRequest, ScoreEncoder)

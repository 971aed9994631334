"""POST /tokenize and /detokenize."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from tokka.api.deps import CurrentCall, documented_body, json_response
from tokka.api.document import errors
from tokka.core import ANONYMOUS
from tokka.protocol.models import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize",
    summary="Turn text or messages into token ids, as a generation would",
    responses={200: {"model": TokenizeResponse}, **errors(400, 401, 403, 404, 413, 415, 429, 503)},
    openapi_extra=documented_body(TokenizeRequest, {"prompt": "Hei maailma"}),
)
async def tokenize(call: CurrentCall, request: Request) -> Response:
    asked = await call.parse(TokenizeRequest, request.receive)
    tokens = await call.services.dispatcher.tokenize(asked.model, asked.prompt, call.record, call.allowance)
    texts = await call.services.dispatcher.token_texts(asked.model, tokens, call.record) if asked.shows_texts else None
    info = call.services.dispatcher.model(asked.model, call.record.key or ANONYMOUS).replicas.info
    return await json_response(
        {
            "tokens": list(tokens),
            "count": len(tokens),
            "max_model_len": info.max_model_len if info else None,
            "token_strs": texts,
        }
    )


@router.post(
    "/detokenize",
    summary="Turn token ids into text",
    responses={200: {"model": DetokenizeResponse}, **errors(400, 401, 403, 404, 413, 415, 429, 503)},
    openapi_extra=documented_body(DetokenizeRequest, {"tokens": [1, 2, 3]}),
)
async def detokenize(call: CurrentCall, request: Request) -> Response:
    asked = await call.parse(DetokenizeRequest, request.receive)
    text = await call.services.dispatcher.detokenize(asked.model, asked.tokens, call.record, call.allowance)
    return await json_response({"prompt": text})

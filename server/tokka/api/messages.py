"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokka.api.deps import CurrentCall, documented_body
from tokka.api.document import MESSAGES_RESPONSES, anthropic_errors
from tokka.api.respond import GenerationResponse
from tokka.protocol.anthropic.answer import MessagesEncoder
from tokka.protocol.anthropic.models import TokenCount
from tokka.protocol.anthropic.request import CountTokensRequest, MessagesRequest

router = APIRouter(tags=["generate"])
counting = APIRouter(tags=["generate"])
_CONVERSATION: dict[str, Any] = {
    "model": "SmolLM2-135M-Instruct",
    "messages": [{"role": "user", "content": "What is the capital of Finland?"}],
}


@router.post(
    "/v1/messages",
    summary="Answer a conversation, in Anthropic's form",
    responses=MESSAGES_RESPONSES,
    openapi_extra=documented_body(MessagesRequest, {**_CONVERSATION, "max_tokens": 64}),
)
async def create_message(call: CurrentCall) -> Response:
    return GenerationResponse(call, MessagesRequest, MessagesEncoder)


@counting.post(
    "/v1/messages/count_tokens",
    summary="Count the tokens of a conversation, in Anthropic's form",
    responses={200: {"model": TokenCount}, **anthropic_errors(400, 401, 403, 404, 413, 415, 429, 503)},
    openapi_extra=documented_body(CountTokensRequest, _CONVERSATION),
)
async def count_tokens(call: CurrentCall, request: Request) -> Response:
    asked = await call.parse(CountTokensRequest, request.receive)
    tokens = await call.services.dispatcher.tokenize(asked.model, asked.prompt, call.record, call.allowance)
    return JSONResponse({"input_tokens": len(tokens)})

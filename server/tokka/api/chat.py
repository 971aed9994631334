"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from tokka.api.deps import CurrentCall, documented_body
from tokka.api.document import CHAT_RESPONSES
from tokka.api.respond import GenerationResponse
from tokka.protocol.chat import ChatRequest
from tokka.protocol.chat_answer import ChatEncoder

router = APIRouter(tags=["generate"])
_EXAMPLE: dict[str, Any] = {
    "model": "SmolLM2-135M-Instruct",
    "messages": [{"role": "user", "content": "What is the capital of Finland?"}],
    "max_completion_tokens": 64,
}


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    responses=CHAT_RESPONSES,
    openapi_extra=documented_body(ChatRequest, _EXAMPLE),
)
async def create_chat_completion(call: CurrentCall) -> Response:
    return GenerationResponse(call, ChatRequest, ChatEncoder)

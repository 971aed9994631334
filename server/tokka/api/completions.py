"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from tokka.api.deps import CurrentCall, documented_body
from tokka.api.document import COMPLETION_RESPONSES
from tokka.api.respond import GenerationResponse
from tokka.protocol.completions import CompletionEncoder, CompletionRequest

router = APIRouter(tags=["generate"])
_EXAMPLE: dict[str, Any] = {"model": "SmolLM2-135M-Instruct", "prompt": "Helsinki is", "max_tokens": 16}


@router.post(
    "/v1/completions",
    summary="Continue a text",
    responses=COMPLETION_RESPONSES,
    openapi_extra=documented_body(CompletionRequest, _EXAMPLE),
)
async def create_completion(call: CurrentCall) -> Response:
    return GenerationResponse(call, CompletionRequest, CompletionEncoder)

"""POST /v1/completions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from tokka.api.deps import CurrentRecord, CurrentServices, body_of, documented_body
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
async def create_completion(
    body: Annotated[CompletionRequest, body_of(CompletionRequest)], services: CurrentServices, record: CurrentRecord
) -> Response:
    request = body.to_core()
    record.stream = bool(body.stream)
    if services.log_prompts:
        record.prompt = [asdict(prompt) for prompt in body.prompt]
    generation = await services.dispatcher.open(request, record)
    encoder = CompletionEncoder(body, request.id, services.fingerprint)
    return GenerationResponse(generation, encoder, stream=record.stream, keep_alive_s=services.keep_alive_s)

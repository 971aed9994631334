"""The models of Anthropic's responses, for the OpenAPI document, and its list of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from tokka.protocol.times import format_iso


class ThinkingTokens(BaseModel):
    """The tokens of the reasoning. They are part of `output_tokens`."""

    thinking_tokens: int


class AnthropicUsage(BaseModel):
    """Token counts. `input_tokens` does not include `cache_read_input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens
    server_tool_use: None
    cache_creation: None = None
    inference_geo: None = None
    service_tier: Literal["standard"] | None = None


class OutputBlock(BaseModel):
    """A block of the response: `text`, `thinking` with its signature, or `tool_use` with id, name and input."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    caller: dict[str, str] | None = None


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnthropicMessageObject(BaseModel):
    """The response."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[OutputBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: None
    container: None
    usage: AnthropicUsage


class StopDelta(BaseModel):
    """Why the response ended."""

    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: None
    container: None


class BlockDelta(BaseModel):
    """New parts of a block, or of the message at its end."""

    type: Literal["text_delta", "thinking_delta", "signature_delta", "input_json_delta"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None


class AnthropicErrorDetail(BaseModel):
    """The type and the message of an error. `details`: the cause for programs."""

    type: str
    message: str
    details: dict[str, str] | None = None


class AnthropicErrorBody(BaseModel):
    """The body of an error response, and the event that ends a stream with an error."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str | None = None


class AnthropicEvent(BaseModel):
    """An event of a streamed message. `type` is also the name of the event."""

    type: Literal[
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    message: AnthropicMessageObject | None = None
    index: int | None = None
    content_block: OutputBlock | None = None
    delta: BlockDelta | StopDelta | None = None
    usage: AnthropicUsage | None = None
    error: AnthropicErrorDetail | None = None


class TokenCount(BaseModel):
    """The tokens of a request's prompt."""

    input_tokens: int


class AnthropicModel(BaseModel):
    """A served name in Anthropic's form."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: None


class AnthropicModelList(BaseModel):
    """The served names in Anthropic's form. All are on one page."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


def model_object(name: str, created_s: int, max_model_len: int | None) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": format_iso(created_s),
        "max_input_tokens": max_model_len,
        "max_tokens": max_model_len,
        "capabilities": None,
    }


def model_list(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ids = [model["id"] for model in models]
    return {
        "data": list(models),
        "has_more": False,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }

"""The response object and its events, as the OpenAPI document shows them.

The encoder builds plain dicts, which is faster. The tests validate its output with these closed models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TokenInText(_Closed):
    """A token with its logprob and UTF-8 bytes."""

    token: str
    logprob: float | None
    bytes: list[int]


class ScoredToken(TokenInText):
    """A generated token with its alternatives."""

    top_logprobs: list[TokenInText]


class OutputText(_Closed):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[ScoredToken]


class ReasoningText(_Closed):
    """The text of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class OutputMessage(_Closed):
    """A message of the model."""

    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputFunctionCall(_Closed):
    """A function call of the model."""

    type: Literal["function_call"]
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str = Field(description="JSON as the model wrote it; incomplete if the call was cut off.")
    namespace: str | None = Field(None, description="The namespace of the function, if it has one.")


class OutputReasoning(_Closed):
    """The model's reasoning."""

    type: Literal["reasoning"]
    id: str
    status: ItemStatus
    summary: list[None]
    content: list[ReasoningText]


OutputItem = Annotated[OutputMessage | OutputFunctionCall | OutputReasoning, Field(discriminator="type")]


class InputTokensDetails(_Closed):
    """The breakdown of `input_tokens`."""

    cached_tokens: int


class OutputTokensDetails(_Closed):
    """The breakdown of `output_tokens`."""

    reasoning_tokens: int


class ResponseUsage(_Closed):
    """The usage of a whole response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(_Closed):
    """The error of a failed response."""

    code: str
    message: str


class ResponseIncomplete(_Closed):
    """The reason of an incomplete response."""

    reason: Literal["max_output_tokens"]


class ResponseFunction(_Closed):
    """A function that the model was offered."""

    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class ResponseObject(_Closed):
    """A response. All fields are always present."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    error: ResponseError | None
    incomplete_details: ResponseIncomplete | None
    instructions: str | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    previous_response_id: str | None
    store: bool
    background: bool
    parallel_tool_calls: bool
    tool_choice: str | dict[str, Any]
    tools: list[ResponseFunction]
    text: dict[str, Any]
    reasoning: dict[str, Any] | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    truncation: Literal["auto", "disabled"]
    temperature: float
    top_p: float
    top_logprobs: int
    presence_penalty: float
    frequency_penalty: float
    service_tier: Literal["default"]
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None


class ResponseEvent(BaseModel):
    """An event of a streamed response. `type` says which other fields it has; see docs/responses.md."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    sequence_number: int = Field(description="0 for the first event, then one more for each.")


class Compaction(_Closed):
    """An item that stands for an earlier part of a conversation."""

    type: Literal["compaction"]
    id: str
    encrypted_content: str


class CompactedResponse(_Closed):
    """A conversation as one item, to send as input."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[Compaction]
    usage: ResponseUsage


class DeletedResponse(_Closed):
    """The answer to a removal."""

    id: str
    object: Literal["response"]
    deleted: bool


class InputTokens(_Closed):
    """The tokens of a request."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class ItemList(_Closed):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool

"""Responses of the generation endpoints, as the OpenAPI document shows them.

The encoders build plain dicts, which is faster. The tests validate their output with these closed models.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PromptTokensDetails(_Answer):
    """The breakdown of `prompt_tokens`."""

    cached_tokens: int
    audio_tokens: int


class CompletionTokensDetails(_Answer):
    """The breakdown of `completion_tokens`."""

    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class TokenCounts(_Answer):
    """The usage so far. Its details are known only at the end."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class UsageObject(TokenCounts):
    """The usage of a whole response."""

    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(_Answer):
    """A token with its logprob and UTF-8 bytes."""

    token: str
    logprob: float | None
    bytes: list[int]


class PromptTokenLogprob(_Answer):
    """The logprob of a prompt token or of an alternative to it."""

    logprob: float
    rank: int = Field(description="Rank of the token by probability, from 1.")
    decoded_token: str


# One entry per prompt token: the token and its alternatives, by token id. Null for the first token.
PromptLogprobList = list[dict[str, PromptTokenLogprob] | None]


class ChatTokenLogprob(TopLogprob):
    """A generated token with its logprob and alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    """The logprobs of a chat choice."""

    content: list[ChatTokenLogprob]
    refusal: None


class CalledFunction(_Answer):
    """The function that a tool call names, and its arguments."""

    name: str
    arguments: str = Field(description="JSON as the model wrote it; incomplete if the choice was cut off.")


class MessageToolCall(_Answer):
    """A complete tool call."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(_Answer):
    """The generated message of a choice."""

    role: Literal["assistant"]
    content: str | None = Field(description="Null if there are only tool calls.")
    refusal: None
    annotations: list[None]
    tool_calls: list[MessageToolCall] | None = None
    reasoning_content: str | None = Field(None, description="The model's reasoning.")
    reasoning: str | None = Field(None, description="Same as `reasoning_content`, by its newer name.")


class ChatChoice(_Answer):
    """A complete chat choice."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: str | int | None = Field(description="The stop string or token id that matched, or `timeout`.")
    token_ids: list[int] | None = None


class ChatCompletion(_Answer):
    """The response of a chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: Literal["default"]
    choices: list[ChatChoice]
    usage: UsageObject
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobList | None = None


class FunctionDelta(_Answer):
    """A piece of a function call."""

    name: str | None = None
    arguments: str


class ToolCallPiece(_Answer):
    """A piece of a tool call. Only the first piece has id, type and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(_Answer):
    """The new parts of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCallPiece] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatChunkChoice(_Answer):
    """The new parts of a chat choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(_Answer):
    """A chunk of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: Literal["default"]
    choices: list[ChatChunkChoice]
    usage: UsageObject | TokenCounts | None = None
    obfuscation: str | None = None
    prompt_token_ids: list[int] | None = None


class CompletionLogprobs(_Answer):
    """The logprobs of a choice, in lists by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Answer):
    """A choice, or its new parts in a chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None = Field(description="Null in all chunks before the last one of a choice.")
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobList | None = None


class Completion(_Answer):
    """The response, or a chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageObject | TokenCounts | None = None
    obfuscation: str | None = None


class ErrorDetail(_Answer):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None
    # The cause for programs: in a downtime `begin`, `end` and `reason`.
    details: dict[str, str] | None = None


class ErrorBody(_Answer):
    """The body of an error response."""

    error: ErrorDetail

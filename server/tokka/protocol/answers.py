"""The answers of the generation endpoints as the OpenAPI document shows them.

The encoders build plain dicts, which is faster; the tests hold their output against these closed models.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PromptTokensDetails(_Answer):
    cached_tokens: int
    audio_tokens: int


class CompletionTokensDetails(_Answer):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class TokenCounts(_Answer):
    """The usage so far: the details are known at the end."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class UsageObject(TokenCounts):
    """The usage of a whole answer."""

    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(_Answer):
    token: str
    logprob: float | None
    bytes: list[int]


class PromptTokenLogprob(_Answer):
    logprob: float
    rank: int = Field(description="The token's place among all tokens by likelihood, from 1.")
    decoded_token: str


# For each token of the prompt, by token id: the token itself and the alternatives. Null for the first token.
PromptLogprobList = list[dict[str, PromptTokenLogprob] | None]


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    content: list[ChatTokenLogprob]
    refusal: None


class CalledFunction(_Answer):
    name: str
    arguments: str = Field(description="JSON as the model wrote it; incomplete if the choice was cut short.")


class MessageToolCall(_Answer):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(_Answer):
    role: Literal["assistant"]
    content: str | None = Field(description="Null if there is nothing beside the calls.")
    refusal: None
    annotations: list[None]
    tool_calls: list[MessageToolCall] | None = None
    reasoning_content: str | None = Field(None, description="What the model thought before it answered.")
    reasoning: str | None = Field(None, description="The same, by its newer name.")


class ChatChoice(_Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: str | int | None = Field(description="The stop string or token id that matched, or `timeout`.")
    token_ids: list[int] | None = None


class ChatCompletion(_Answer):
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
    name: str | None = None
    arguments: str


class ToolCallPiece(_Answer):
    """Id, type and name come with a call's first piece."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(_Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCallPiece] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatChunkChoice(_Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(_Answer):
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
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None = Field(description="Null in the chunks before a choice's last.")
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobList | None = None


class Completion(_Answer):
    """The answer, and each chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageObject | TokenCounts | None = None
    obfuscation: str | None = None


class ErrorDetail(_Answer):
    message: str
    type: str
    param: str | None
    code: str | None
    # Where a program may want to read the cause: in a downtime `begin`, `end` and `reason`.
    details: dict[str, str] | None = None


class ErrorBody(_Answer):
    error: ErrorDetail

"""GET /v1/models, POST /tokenize and /detokenize, GET /version."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokka.core import Prompt, TextPrompt
from tokka.protocol.common import ID_TYPECODE, MAX_TEXT_CHARS, TokenId, WireModel, invalid
from tokka.protocol.messages import MAX_MESSAGES, Message, TemplateKwargs, chat_prompt, check_continuation
from tokka.protocol.vllm_fields import TOKENIZE_FIELDS, Neutral, NeutralModel


def model_object(name: str, created: int, max_model_len: int | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tokka",
        # Programs for vLLM read it.
        "root": name,
        "max_model_len": max_model_len,
    }


@dataclass(frozen=True, slots=True)
class ParsedTokenize:
    model: str | None
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class ParsedDetokenize:
    """`tokens`: ids that have not been compared with a vocabulary."""

    model: str | None
    tokens: Sequence[int]


class TokenizeRequest(NeutralModel):
    """Either a text or the messages of a chat."""

    neutral: ClassVar[Mapping[str, Neutral]] = TOKENIZE_FIELDS
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    model: str | None = Field(None, min_length=1, max_length=512)
    prompt: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("Send either prompt or messages", "prompt")
        if self.messages is not None:
            check_continuation(self.messages, self.add_generation_prompt, self.continue_final_message)
        return self

    def parsed(self) -> ParsedTokenize:
        if self.messages is None:
            return ParsedTokenize(self.model, TextPrompt(self.prompt or ""))
        prompt = chat_prompt(
            self.messages, self.add_generation_prompt, self.continue_final_message, self.chat_template_kwargs
        )
        return ParsedTokenize(self.model, prompt)


class DetokenizeRequest(WireModel):
    model: str | None = Field(None, min_length=1, max_length=512)
    tokens: Annotated[list[TokenId], Field(fail_fast=True)] = Field(max_length=1024 * 1024)

    def parsed(self) -> ParsedDetokenize:
        return ParsedDetokenize(self.model, array(ID_TYPECODE, self.tokens))


class ModelObject(BaseModel):
    """OpenAI's model object, with the context length in tokens once it is known."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int | None


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelObject]


class TokenizeResponse(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int | None


class DetokenizeResponse(BaseModel):
    prompt: str


class Version(BaseModel):
    version: str
    engine: str | None
    engine_version: str | None


class Health(BaseModel):
    """What the engine is doing; `retry_after_s` is 0 when it serves."""

    status: str
    phase: str
    detail: str
    elapsed_s: float
    retry_after_s: float

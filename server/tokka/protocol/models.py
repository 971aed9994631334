"""GET /v1/models, POST /tokenize and /detokenize, GET /version."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokka.core import IgnoredFields, Prompt, TextPrompt
from tokka.engine_facts import ModelState
from tokka.protocol.common import ID_TYPECODE, MAX_TEXT_CHARS, BodyModel, TokenId, invalid
from tokka.protocol.messages import (
    MAX_MESSAGES,
    Message,
    TemplateKwargs,
    chat_prompt,
    check_continuation,
    unknown_fields,
)
from tokka.protocol.tools import WireTools, check_tools, tools_of
from tokka.protocol.vllm_fields import TOKENIZE_FIELDS, Neutral, NeutralModel
from tokka.tasks import Task


def model_object(
    name: str, created: int, max_model_len: int | None, tasks: Collection[Task] | None, state: ModelState
) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tokka",
        # vLLM's clients read it.
        "root": name,
        "max_model_len": max_model_len,
        "tasks": None if tasks is None else sorted(tasks),
        "state": state,
    }


@dataclass(frozen=True, slots=True)
class ParsedTokenize:
    """A valid /tokenize body as plain data."""

    model: str | None
    prompt: Prompt
    shows_texts: bool
    ignored: IgnoredFields


@dataclass(frozen=True, slots=True)
class ParsedDetokenize:
    """A valid /detokenize body as plain data. `tokens`: ids that are not checked against a vocabulary yet."""

    model: str | None
    tokens: Sequence[int]
    ignored: IgnoredFields


class TokenizeRequest(BodyModel, NeutralModel):
    """Either a text or the messages of a chat."""

    neutral: ClassVar[Mapping[str, Neutral]] = TOKENIZE_FIELDS
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    model: str | None = Field(None, min_length=1, max_length=512)
    prompt: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    tools: WireTools | None = Field(None, description="Functions to render into the prompt. Only with messages.")
    add_special_tokens: bool | None = Field(
        None,
        description="Add the tokens that begin and end a text. Default: as a generation does, true for a prompt and"
        " false for messages, whose template adds them.",
    )
    return_token_strs: bool | None = Field(None, description="Also return each token as it is in the vocabulary.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("Send either prompt or messages", "prompt")
        if self.messages is not None:
            check_continuation(self.messages, self.add_generation_prompt, self.continue_final_message)
        elif self.tools:
            raise invalid("tools are only allowed with messages: leave them out with a prompt", "tools")
        check_tools(self.tools, None, None)
        return self

    def parsed(self) -> ParsedTokenize:
        return ParsedTokenize(self.model, self._prompt(), bool(self.return_token_strs), self.ignored)

    @property
    def ignored(self) -> IgnoredFields:
        return self.ignored_with(unknown_fields(self.messages or ()))

    def _prompt(self) -> Prompt:
        if self.messages is None:
            return TextPrompt(self.prompt or "", self.add_special_tokens)
        prompt = chat_prompt(
            self.messages,
            self.add_generation_prompt,
            self.continue_final_message,
            self.chat_template_kwargs,
            tools_of(self.tools, None, None),
        )
        return replace(prompt, add_special_tokens=self.add_special_tokens)


class DetokenizeRequest(BodyModel):
    """Token ids to turn into text."""

    model: str | None = Field(None, min_length=1, max_length=512)
    tokens: Annotated[list[TokenId], Field(fail_fast=True)] = Field(max_length=1024 * 1024)

    def parsed(self) -> ParsedDetokenize:
        return ParsedDetokenize(self.model, array(ID_TYPECODE, self.tokens), self.ignored)


class ModelObject(BaseModel):
    """OpenAI's model object, with the model's state. Context length in tokens and tasks are null until they are known.

    A request for a model that is `asleep` starts it.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int | None
    tasks: list[Task] | None
    state: ModelState


class ModelList(BaseModel):
    """The served names."""

    object: Literal["list"]
    data: list[ModelObject]


class TokenizeResponse(BaseModel):
    """The token ids of a text or of messages."""

    tokens: list[int]
    count: int
    max_model_len: int | None
    token_strs: list[str] | None = None


class DetokenizeResponse(BaseModel):
    """The text of token ids."""

    prompt: str


class Version(BaseModel):
    """The versions of the server and the engine."""

    version: str
    engine: str | None
    engine_version: str | None


class Health(BaseModel):
    """The state of the server. `retry_after_s` is 0 when it serves requests."""

    status: str
    phase: str
    detail: str
    elapsed_s: float
    retry_after_s: float

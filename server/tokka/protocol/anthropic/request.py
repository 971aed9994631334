"""The requests of POST /v1/messages and POST /v1/messages/count_tokens."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from tokka.core import ChatPrompt, Constraint, GenerateRequest, IgnoredFields, Sampling, Tools
from tokka.errors import ThreadsUnsupported
from tokka.protocol.annotations import LooseSchema
from tokka.protocol.anthropic.blocks import (
    AnthropicMessage,
    SystemText,
    check_results,
    images_of,
    plain_messages,
    unknown_fields,
)
from tokka.protocol.anthropic.tools import (
    AnthropicToolChoice,
    AnthropicTools,
    ClientTool,
    called_tools,
    check_tools,
    left_out,
)
from tokka.protocol.chunks import AnswerForm
from tokka.protocol.common import MAX_INT64, BodyModel, OpenModel, new_id
from tokka.protocol.common_fields import Model, TopP
from tokka.protocol.constraint import chat_constraint, json_constraint
from tokka.protocol.generation import MAX_STOP_CHARS, MAX_STOPS, ParsedGeneration, WireStop, stop_list
from tokka.protocol.messages import MAX_MESSAGES
from tokka.protocol.models import ParsedTokenize
from tokka.protocol.tools import Tool

MESSAGE_ID_PREFIX = "msg_"
# Fields of Anthropic's API that ask for something this server does not do.
_WITHOUT_EFFECT = ("compaction", "container", "context_management", "fallbacks", "mcp_servers")
_Opaque = Annotated[Any, Field(description="Accepted without effect.")]


class Thinking(OpenModel):
    """Whether the model reasons first, and how much. `disabled` works on models whose template can turn it off."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_INT64,
        description="With `enabled`: maximum reasoning tokens. No effect without --reasoning-parser, or with structured"
        " output or strict tools.",
    )
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="omitted: thinking blocks have a signature and no text."
    )


class JsonFormat(OpenModel):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    # `schema` is a method of pydantic's models.
    schema_: LooseSchema = Field(alias="schema", description="A JSON Schema. All its keywords must be enforceable.")


class OutputConfig(OpenModel):
    """The form of the response."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How much the model reasons: a variable for the chat template."
    )
    format: JsonFormat | None = None


class Metadata(OpenModel):
    """Facts about the request. Accepted without effect."""

    user_id: str | None = Field(None, max_length=1024)


class ConversationFields(BodyModel):
    """The fields of both endpoints: all that becomes the prompt."""

    model: Model
    messages: Annotated[list[AnthropicMessage], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: SystemText | None = Field(None, description="Instructions before the conversation.")
    tools: AnthropicTools | None = Field(None, description="Tools the model may call.")
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = Field(None, description="Older name of `output_config.format`.")

    # Accepted for compatibility with Anthropic, without effect
    cache_control: _Opaque = None
    betas: _Opaque = None
    billing_policy: _Opaque = None
    compaction: _Opaque = None
    container: _Opaque = None
    context_management: _Opaque = None
    diagnostics: _Opaque = None
    fallback_credit_token: _Opaque = None
    fallbacks: _Opaque = None
    inference_geo: _Opaque = None
    mcp_servers: _Opaque = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard", "fast"] | None = None
    thread: Annotated[Any, Field(description="Not supported: the server keeps no conversations.")] = None
    user_profile_id: _Opaque = None
    workspace_id: _Opaque = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_results(self.messages)
        check_tools(self.tools, self.tool_choice)
        return self

    @cached_property
    def _called(self) -> tuple[list[Tool], Tools | None]:
        return called_tools(self.tools, self.tool_choice)

    @property
    def ignored(self) -> IgnoredFields:
        without_effect = tuple(name for name in _WITHOUT_EFFECT if getattr(self, name) is not None)
        in_tools = sum(tool.unknown for tool in self.tools or () if isinstance(tool, ClientTool))
        return IgnoredFields(
            (*super().ignored.names, *without_effect),
            in_messages=unknown_fields(self.messages) + in_tools,
            tools=left_out(self.tools),
        )

    def prompt(self) -> ChatPrompt:
        """Return the conversation as the engine renders it. Raises ThreadsUnsupported."""
        if self.thread is not None:
            raise ThreadsUnsupported(
                "The server keeps no conversations: send all messages, without thread.", param="thread"
            )
        messages = plain_messages(self.system, self.messages)
        last = messages[-1]
        continues = last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last
        return ChatPrompt(
            messages=messages,
            tools=self._called[1],
            add_generation_prompt=not continues,
            continue_final_message=continues,
            reasoning_effort=self._effort(),
            images=images_of(self.messages),
        )

    def _effort(self) -> str | None:
        if self.thinking is not None and self.thinking.type == "disabled":
            return "none"
        return self.output_config.effort if self.output_config else None


class CountTokensRequest(ConversationFields):
    """The body of POST /v1/messages/count_tokens."""

    def parsed(self) -> ParsedTokenize:
        return ParsedTokenize(self.model, self.prompt(), shows_texts=False, ignored=self.ignored)


class MessagesRequest(ConversationFields):
    """The body of POST /v1/messages."""

    max_tokens: int = Field(
        ge=1, le=MAX_INT64, description="Maximum tokens to generate. More than the context has left means all of it."
    )
    stop_sequences: Annotated[list[str], PlainValidator(stop_list, json_schema_input_type=WireStop)] = Field(
        default_factory=list,
        description=f"Up to {MAX_STOPS} strings of up to {MAX_STOP_CHARS} characters at which the response ends.",
    )
    stream: bool | None = Field(None, description="Send server-sent events as the text is generated.")
    temperature: float | None = Field(None, ge=0, le=1, description="Default: the value in the model's files, else 1.")
    top_p: TopP = None
    top_k: int | None = Field(None, ge=0, le=2**30, description="0: no limit.")

    @model_validator(mode="after")
    def _has_one_constraint(self) -> Self:
        _ = self.constraint
        return self

    @cached_property
    def constraint(self) -> Constraint | None:
        functions, called = self._called
        return chat_constraint(self._text_constraint(), functions, called)

    def _budget(self) -> int | None:
        thinking = self.thinking
        return thinking.budget_tokens if thinking is not None and thinking.type == "enabled" else None

    def _text_constraint(self) -> Constraint | None:
        if self.output_config and self.output_config.format:
            return json_constraint(self.output_config.format.schema_, "output_config.format.schema")
        return json_constraint(self.output_format.schema_, "output_format.schema") if self.output_format else None

    def parsed(self) -> ParsedGeneration[AnswerForm]:
        """Return the valid body as plain data."""
        return ParsedGeneration(self.to_core(), self.answer_form(), self.ignored)

    def answer_form(self) -> AnswerForm:
        return AnswerForm(
            model=self.model,
            stream=bool(self.stream),
            choices=1,
            candidates=1,
            alternatives=None,
            include_usage=True,
            continuous_usage=False,
            obfuscates=False,
            shows_token_ids=False,
            shows_reasoning=self.thinking is None or self.thinking.display != "omitted",
        )

    def to_core(self) -> GenerateRequest:
        return GenerateRequest(
            id=new_id(MESSAGE_ID_PREFIX),
            model=self.model,
            prompts=(self.prompt(),),
            sampling=Sampling(
                # Not `max_tokens`, which is refused beyond the context: agents always ask for more.
                default_max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                stop=tuple(self.stop_sequences),
                thinking_token_budget=self._budget(),
                # Clients always send one, so it is no error where it cannot be enforced.
                is_budget_optional=self._budget() is not None,
                constraint=self.constraint,
            ),
            limit_param="max_tokens",
        )

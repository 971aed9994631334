"""The request of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tokka.core import (
    ChatPrompt,
    Constraint,
    GenerateRequest,
    IgnoredFields,
    Tools,
)
from tokka.protocol.chat_answer import CHAT_ID_PREFIX
from tokka.protocol.chunks import AnswerForm
from tokka.protocol.common import Metadata, Unsupported, WireModel, invalid, new_id
from tokka.protocol.constraint import ResponseFormat, chat_constraint, text_constraint
from tokka.protocol.generation import GenerationFields
from tokka.protocol.messages import (
    MAX_MESSAGES,
    Content,
    Message,
    TemplateKwargs,
    chat_prompt,
    check_continuation,
    check_tool_messages,
    text_of,
    unknown_fields,
)
from tokka.protocol.template_values import Documents
from tokka.protocol.tools import WireToolChoice, WireTools, check_tools, tools_of
from tokka.protocol.vllm_fields import CHAT_FIELDS, Neutral


class Prediction(WireModel):
    """Predicted text. Accepted without effect."""

    type: Literal["content"]
    content: Content


class PromptCacheOptions(WireModel):
    """Accepted without effect: the prefix cache is always on."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class ChatRequest(GenerationFields):
    """The body of POST /v1/chat/completions."""

    neutral: ClassVar[Mapping[str, Neutral]] = CHAT_FIELDS

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(
        None, ge=1, le=2**63 - 1, description="Older name of max_completion_tokens, which takes precedence."
    )
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        le=2**63 - 1,
        description="Maximum tokens to generate per choice. Default: the rest of the context, up to the limits of the"
        " server and the key.",
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Alternatives to report per token. Needs logprobs: true."
    )
    response_format: ResponseFormat | None = Field(None, description="The format of every choice's text.")
    tools: WireTools | None = Field(None, description="Functions the model may call.")
    tool_choice: WireToolChoice | None = Field(
        None,
        description="`auto` (default): the model decides. `required`: at least one tool call. A function: a call of it."
        " `allowed_tools`: `auto` or `required` among these. `none`: no tool call, and no tools in the prompt.",
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one tool call per choice.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="Continue the last message instead of starting a new one."
    )
    chat_template_kwargs: TemplateKwargs | None = Field(None, description="Variables for the chat template.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None,
        description="How much the model reasons: a variable for the chat template. Templates that only know"
        " `enable_thinking` get false for `none`, else true. Models without either variable ignore it.",
    )
    include_reasoning: bool | None = Field(None, description="false: omit the reasoning from the response.")
    documents: Documents | None = Field(
        None, description="Objects of texts for the chat template. Ignored if the template does not read them."
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="A variable for the chat template. Ignored if the template does not read it."
    )

    # Accepted for compatibility with OpenAI, without effect
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = Field(None, max_length=1024)
    prompt_cache_key: str | None = Field(None, max_length=1024)
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prediction: Prediction | None = None
    modalities: list[Literal["text"]] | None = Field(None, min_length=1, max_length=1)

    # Not supported yet
    functions: Unsupported = None
    function_call: Unsupported = None
    moderation: Unsupported = None
    audio: Unsupported = None
    web_search_options: Unsupported = None

    @model_validator(mode="after")
    def _chat_consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
        if self.logprob_token_ids and not self.logprobs:
            raise invalid("logprob_token_ids needs logprobs: true", "logprob_token_ids")
        for name in ("reasoning_effort", "verbosity"):
            if getattr(self, name) and name in (self.chat_template_kwargs or {}):
                raise invalid(f"{name} is also in chat_template_kwargs: send it once", name)
        check_continuation(self.messages, self.add_generation_prompt, self.continue_final_message)
        check_tool_messages(self.messages)
        check_tools(self.tools, self.tool_choice, self.parallel_tool_calls)
        return self

    @cached_property
    def called_tools(self) -> Tools | None:
        """Return the tools, or None if none may be called."""
        return tools_of(self.tools, self.tool_choice, self.parallel_tool_calls)

    @cached_property
    def constraint(self) -> Constraint | None:
        text = text_constraint(self.response_format, self.structured_outputs)
        return chat_constraint(text, self.tools or (), self.called_tools)

    def prompt(self) -> ChatPrompt:
        return chat_prompt(
            self.messages,
            self.add_generation_prompt,
            self.continue_final_message,
            {**(self.chat_template_kwargs or {}), **({"documents": self.documents} if self.documents else {})},
            self.called_tools,
            self.reasoning_effort,
            self.verbosity,
        )

    @property
    def ignored(self) -> IgnoredFields:
        return self.ignored_with(unknown_fields(self.messages))

    def answer_form(self) -> AnswerForm:
        last = self.messages[-1]
        return self.form(
            alternatives=(self.top_logprobs or 0) if self.logprobs else None,
            shows_reasoning=self.include_reasoning is not False,
            has_content=self.called_tools is None,
            echo=text_of(last.content) if self.echo and last.role == "assistant" else "",
        )

    def to_core(self) -> GenerateRequest:
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return GenerateRequest(
            id=new_id(CHAT_ID_PREFIX),
            model=self.model,
            prompts=(self.prompt(),),
            sampling=self.sampling(
                n=self.n or 1,
                max_tokens=limit,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            ),
            limit_param="max_completion_tokens" if self.max_completion_tokens is not None else "max_tokens",
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            truncation_side=self.truncation_side or "left",
            timeout_s=self.timeout,
            priority=self.priority or 0,
            cache_salt=self.cache_salt,
        )

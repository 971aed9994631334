"""The request of POST /v1/responses."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from tokka.core import ChatPrompt, Constraint, GenerateRequest, IgnoredFields, Sampling, Tools
from tokka.protocol.common import (
    MAX_INT64,
    BodyModel,
    Int64,
    Metadata,
    OpenModel,
    Text,
    Unsupported,
    WireModel,
    invalid,
)
from tokka.protocol.common_fields import (
    CacheSalt,
    MinP,
    Model,
    Penalty,
    Priority,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
)
from tokka.protocol.constraint import (
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedSchema,
    ResponseFormat,
    TextFormat,
    chat_constraint,
    text_constraint,
)
from tokka.protocol.generation import ParsedGeneration, WireStop, stop_list
from tokka.protocol.messages import TemplateKwargs
from tokka.protocol.responses.conversation import images_of, messages_of, missing_call, with_instructions
from tokka.protocol.responses.items import CustomOutputItem, FunctionOutputItem, Input, plain_items, unknown_fields
from tokka.protocol.responses.resource import ResponseForm, new_response_id
from tokka.protocol.responses.tools import (
    AllowedChoice,
    FlatChoice,
    FlatTools,
    NamedChoice,
    OfferedTools,
    offered,
)
from tokka.protocol.tools import tools_of

_Key = Annotated[str, Field(max_length=1024)]
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    # These ask for parts that only other servers have.
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class SchemaFormat(NamedSchema):
    """JSON that matches a schema."""

    type: Literal["json_schema"]

    def of_chat(self) -> ResponseFormat:
        return JsonSchemaFormat.model_construct(type="json_schema", json_schema=self)


class TextOptions(WireModel):
    """The form of the output text."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="A variable for the chat template.")


class ReasoningOptions(OpenModel):
    """How much the model reasons."""

    effort: _Effort | None = Field(None, description="A variable for the chat template.")
    # Accepted without effect: the reasoning itself is in the response.
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(WireModel):
    """Options of a stream."""

    include_obfuscation: bool | None = Field(
        None, description="Pad events with text, so that their sizes reveal less of it. Default: false."
    )


class ResponsesRequest(BodyModel):
    """The body of POST /v1/responses."""

    model: Model
    input: Input | None = Field(None, description="The user's message as text, or the items of the conversation.")
    instructions: Text | None = Field(None, description="A system message before the conversation.")
    stream: bool | None = Field(None, description="Send server-sent events as the response is generated.")
    stream_options: StreamOptions | None = None
    include: Annotated[list[_Include], Field(max_length=16)] | None = Field(
        None, description="`message.output_text.logprobs`: the logprobs of the output text. Others change nothing."
    )

    # Length and choice of tokens
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_INT64,
        description="Maximum tokens to generate, reasoning included. Default: the rest of the context, up to the limits"
        " of the server and the key.",
    )
    max_tool_calls: int | None = Field(None, ge=1, le=MAX_INT64, description="Only counts tools that a server runs.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="`auto`: leave out the oldest messages of a conversation that does not fit the context."
    )
    temperature: Temperature = None
    top_p: TopP = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Alternatives to report per token of output text.")
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    seed: Int64 | None = None
    stop: Annotated[list[str], PlainValidator(stop_list, json_schema_input_type=WireStop)] = Field(
        default_factory=list, description="Up to 16 strings at which the output ends. The string is not returned."
    )

    # Form of the output
    text: TextOptions | None = None
    tools: FlatTools | None = Field(None, description="Functions the model may call. Other tools are left out.")
    tool_choice: FlatChoice | None = Field(
        None,
        description="`auto` (default): the model decides. `required`: at least one call. A function: a call of it."
        " `allowed_tools`: `auto` or `required` among these. `none`: no call, and no tools in the prompt.",
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    reasoning: ReasoningOptions | None = None
    chat_template_kwargs: TemplateKwargs | None = Field(None, description="Variables for the chat template.")

    # Scheduling
    timeout: float | None = Field(
        None, gt=0, le=86400, description="Seconds after which the output so far is returned, as incomplete."
    )
    priority: Priority = None
    cache_salt: CacheSalt = None

    # State
    store: bool | None = Field(None, description="Keep the response.")
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    background: bool | None = Field(None, description="Return at once, and go on without the client. Needs a database.")

    # Repeated in the response, otherwise without effect
    metadata: Metadata | None = None
    prompt_cache_key: _Key | None = None
    safety_identifier: _Key | None = None

    # Accepted for compatibility, without effect
    user: _Key | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    client_metadata: dict[str, Any] | None = None
    context_management: list[dict[str, Any]] | None = Field(None, max_length=16)

    # Not supported yet
    conversation: Unsupported = None
    prompt: Unsupported = None
    moderation: Unsupported = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.input is None and self.previous_response_id is None:
            raise invalid("The input is missing: send text or items", "input")
        if self.input == [] and not self.instructions and self.previous_response_id is None:
            raise invalid("The input has no items: send at least one", "input")
        if self.stream_options is not None and self.stream_options.model_fields_set and not self.stream:
            raise invalid("stream_options is only allowed with stream: true", "stream_options")
        effort = self.reasoning and self.reasoning.effort
        for name, value in (("reasoning_effort", effort), ("verbosity", self.text and self.text.verbosity)):
            if value and name in (self.chat_template_kwargs or {}):
                raise invalid(f"{name} is also set by another field: send it once", "chat_template_kwargs")
        _ = self.offered, self.constraint
        is_whole = self.previous_response_id is None and all(item["type"] != "item_reference" for item in self.items)
        if is_whole and (call_id := missing_call(self.items)) is not None:
            raise invalid(
                f"No function_call item before it has the call_id {call_id[:64]!r}: send that item, too",
                f"{self._place_of(call_id)}.call_id",
            )
        return self

    def _place_of(self, call_id: str) -> str:
        """Return the path of the output of a call."""
        outputs = (FunctionOutputItem, CustomOutputItem)
        items = self.input if isinstance(self.input, list) else []
        places = (at for at, item in enumerate(items) if isinstance(item, outputs) and item.call_id == call_id)
        return f"input[{next(places, 0)}]"

    @cached_property
    def items(self) -> tuple[dict[str, Any], ...]:
        return plain_items(self.input)

    @cached_property
    def offered(self) -> OfferedTools:
        return offered(self.tools, self.tool_choice)

    @cached_property
    def called_tools(self) -> Tools | None:
        """Return the tools, or None if none may be called."""
        return tools_of(self.offered.tools, self.offered.choice, self.parallel_tool_calls)

    @cached_property
    def constraint(self) -> Constraint | None:
        form = self.text.format if self.text else None
        text = text_constraint(form.of_chat() if isinstance(form, SchemaFormat) else form, None)
        if text is not None:
            text = replace(text, param="text.format.schema" if isinstance(form, SchemaFormat) else "text.format.type")
        constraint = chat_constraint(text, self.offered.tools, self.called_tools)
        if constraint is None or self.called_tools is None or self.called_tools.name is None:
            return constraint
        names = [tool.function.name for tool in self.offered.tools]
        return replace(constraint, param=f"{self.offered.places[names.index(self.called_tools.name)]}.parameters")

    @property
    def ignored(self) -> IgnoredFields:
        unknown = unknown_fields(self.input) + (self.reasoning.unknown if self.reasoning else 0)
        return replace(super().ignored, in_messages=unknown, tools=self.offered.left_out)

    def parsed(self) -> ParsedGeneration[ResponseForm]:
        """Return the valid body as plain data."""
        return ParsedGeneration(self.to_core(), self.form(), self.ignored)

    def to_core(self) -> GenerateRequest:
        return GenerateRequest(
            id=new_response_id(),
            model=self.model,
            prompts=(self._prompt(),),
            sampling=self._sampling(),
            prompt_param="input",
            limit_param="max_output_tokens",
            drops_oldest=self.truncation == "auto",
            keeps_answer=True,
            timeout_s=self.timeout,
            priority=self.priority or 0,
            cache_salt=self.cache_salt,
        )

    def form(self) -> ResponseForm:
        """Return the form of the response."""
        return ResponseForm(
            model=self.model,
            stream=bool(self.stream),
            repeated=self._repeated(),
            instructions=self.instructions,
            items=self.items,
            namespaces=self.offered.namespaces,
            has_logprobs=self._logprobs is not None,
            obfuscates=bool(self.stream_options and self.stream_options.include_obfuscation),
            previous_response_id=self.previous_response_id,
            store=self.store,
            background=bool(self.background),
        )

    def _prompt(self) -> ChatPrompt:
        return ChatPrompt(
            messages=tuple(with_instructions(self.instructions, messages_of(self.items))),
            tools=self.called_tools,
            template_kwargs=self.chat_template_kwargs or {},
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            verbosity=self.text.verbosity if self.text else None,
            images=images_of(self.items, "input"),
        )

    @property
    def _logprobs(self) -> int | None:
        """Return the alternatives to report for each token, or None without logprobs."""
        asks = self.top_logprobs or "message.output_text.logprobs" in (self.include or ())
        return self.top_logprobs or 0 if asks else None

    def _sampling(self) -> Sampling:
        return Sampling(
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop),
            logprobs=self._logprobs,
            constraint=self.constraint,
        )

    def _repeated(self) -> dict[str, Any]:
        reasoning = self.reasoning
        return {
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "tool_choice": self._repeated_choice(),
            "tools": [_repeated_tool(tool.function) for tool in self.offered.tools],
            "text": self._repeated_text(),
            "reasoning": None if reasoning is None else {"effort": reasoning.effort, "summary": reasoning.summary},
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "truncation": self.truncation or "disabled",
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_logprobs": self.top_logprobs or 0,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "service_tier": "default",
            "metadata": self.metadata or {},
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
        }

    def _repeated_choice(self) -> str | dict[str, Any]:
        match self.tool_choice:
            case NamedChoice() as choice:
                return {"type": choice.type, "name": choice.full_name}
            case AllowedChoice(mode=mode, tools=tools):
                named = [{"type": tool.type, "name": tool.full_name} for tool in tools if tool.type == "function"]
                return {"type": "allowed_tools", "mode": mode, "tools": named}
            case choice:
                return choice or "auto"

    def _repeated_text(self) -> dict[str, Any]:
        form = self.text.format if self.text else None
        repeated: dict[str, Any] = {"type": form.type if form else "text"}
        if isinstance(form, SchemaFormat):
            repeated |= {
                "name": form.name,
                "description": form.description,
                "schema": form.schema_,
                "strict": bool(form.strict),
            }
        return {"format": repeated, "verbosity": (self.text.verbosity if self.text else None) or "medium"}


def _repeated_tool(function: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
        "strict": bool(function.strict),
    }

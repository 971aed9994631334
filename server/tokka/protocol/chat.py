"""POST /v1/chat/completions: the request, and the encoder from events to chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, assert_never

from pydantic import Field, model_validator

from tokka.core import (
    Accepted,
    ChatPrompt,
    ChoiceDone,
    Constraint,
    Event,
    Finished,
    GenerateRequest,
    IgnoredFields,
    PromptEcho,
    PromptLogprobs,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Tools,
)
from tokka.protocol.chunks import AnswerForm, Chunks, Fold, StreamEncoder, fold_ending
from tokka.protocol.common import (
    Unsupported,
    WireModel,
    bounded_dict,
    invalid,
    new_id,
    now_s,
    prompt_logprobs_list,
    token_text,
)
from tokka.protocol.constraint import ResponseFormat, format_constraint
from tokka.protocol.folding import JsonItems, JsonList, JsonObject, JsonText, Piece
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
from tokka.protocol.tools import WireToolChoice, WireTools, calls_constraint, check_tools, tools_of
from tokka.protocol.vllm_fields import CHAT_FIELDS, Neutral

ID_PREFIX = "chatcmpl-"
MAX_METADATA = 16


class Prediction(WireModel):
    type: Literal["content"]
    content: Content


class PromptCacheOptions(WireModel):
    """The prefix cache is always on; there is nothing to choose."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


_Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    bounded_dict(MAX_METADATA),
    Field(json_schema_extra={"maxProperties": MAX_METADATA}),
]


class ChatRequest(GenerationFields):
    neutral: ClassVar[Mapping[str, Neutral]] = CHAT_FIELDS

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(
        None, ge=1, le=2**63 - 1, description="Older name of max_completion_tokens, which wins over it."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=2**63 - 1, description="Most tokens to generate for a choice. Default: the rest of the context."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs logprobs: true.")
    response_format: ResponseFormat | None = Field(None, description="The form of every choice's text.")
    tools: WireTools | None = Field(None, description="Functions the model may call.")
    tool_choice: WireToolChoice | None = Field(
        None,
        description="`auto`: as the model likes, the default. `required`: at least one call. A function: a call of it."
        " Functions allowed: `auto` or `required` among these. `none`: no call, and the model is told of no tools.",
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in a choice.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="Go on inside the last message instead of starting an answer to it."
    )
    chat_template_kwargs: TemplateKwargs | None = Field(None, description="Variables for the chat template.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None,
        description="How much the model reasons: the chat template's variable of this name. Templates that only know"
        " `enable_thinking` get false for `none`, else true. Models without such a variable ignore it.",
    )
    include_reasoning: bool | None = Field(None, description="false: leave the reasoning out of the answer.")
    documents: Documents | None = Field(
        None, description="Objects of texts for the chat template. Models whose template reads none ignore them."
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="The chat template's variable of this name. Models without it ignore it."
    )

    # Accepted for OpenAI's sake; change nothing here
    metadata: _Metadata | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = Field(None, max_length=1024)
    prompt_cache_key: str | None = Field(None, max_length=1024)
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prediction: Prediction | None = None
    modalities: list[Literal["text"]] | None = Field(None, min_length=1, max_length=1)

    # Later, or never
    functions: Unsupported = None
    function_call: Unsupported = None
    moderation: Unsupported = None
    audio: Unsupported = None
    web_search_options: Unsupported = None

    @model_validator(mode="after")
    def _chat_consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
        if self.structured_outputs is not None and format_constraint(self.response_format) is not None:
            raise invalid("response_format and structured_outputs exclude each other", "structured_outputs")
        for name in ("reasoning_effort", "verbosity"):
            if getattr(self, name) and name in (self.chat_template_kwargs or {}):
                raise invalid(f"{name} is in chat_template_kwargs, too: send it once", name)
        check_continuation(self.messages, self.add_generation_prompt, self.continue_final_message)
        check_tool_messages(self.messages)
        check_tools(self.tools, self.tool_choice, self.parallel_tool_calls)
        self._check_tools_alone()
        return self

    def _check_tools_alone(self) -> None:
        if self.called_tools is None:
            return
        if self.structured_outputs is not None:
            # Held to it a model could not write a call.
            name = "structured_outputs"
            raise invalid(f"{name} cannot be combined with tools: leave one out, or send tool_choice: none", name)
        if self.called_tools.schemas:
            self.refuse_beside("response_format" if self.called_tools.answer else "strict functions")

    @cached_property
    def called_tools(self) -> Tools | None:
        """The tools, unless none may be called."""
        form = format_constraint(self.response_format)
        return tools_of(self.tools, self.tool_choice, self.parallel_tool_calls, form)

    @cached_property
    def _held_to_calls(self) -> Constraint | None:
        return calls_constraint(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def constraint(self) -> Constraint | None:
        if self.called_tools is not None:
            # A form beside tools is theirs to keep.
            return self._held_to_calls
        return format_constraint(self.response_format) or super().constraint

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
        return replace(super().ignored, in_messages=unknown_fields(self.messages))

    def answer_form(self) -> AnswerForm:
        last = self.messages[-1]
        return replace(
            super().answer_form(),
            alternatives=(self.top_logprobs or 0) if self.logprobs else None,
            shows_reasoning=self.include_reasoning is not False,
            has_content=self.called_tools is None,
            echo=text_of(last.content) if self.echo and last.role == "assistant" else "",
        )

    def to_core(self) -> GenerateRequest:
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return GenerateRequest(
            id=new_id(ID_PREFIX),
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


class ChatEncoder(StreamEncoder):
    """Events in, chunks out. The plain answer is the `ChatFold` of the same chunks."""

    def __init__(self, form: AnswerForm, request_id: str, fingerprint: str) -> None:
        head = {
            "id": f"{ID_PREFIX}{form.answer_id}" if form.answer_id else request_id,
            "object": "chat.completion.chunk",
            "created": now_s(),
            "model": form.model,
            "system_fingerprint": fingerprint,
            "service_tier": "default",
        }
        self._form = form
        self._logprobs = form.alternatives is not None
        super().__init__(Chunks(form, head), scored=self._logprobs)
        # Choices whose chunks have text or calls.
        self._begun: set[int] = set()

    def feed(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextDelta():
                return self._delta(event)
            case ReasoningDelta() if not self._form.shows_reasoning:
                return []
            case ReasoningDelta(index, text):
                choice = _choice(index, {"reasoning_content": text, "reasoning": text})
                return [self._chunks.of_text(choice, text)]
            case ToolCallDelta():
                self._begun.add(event.index)
                choice = _choice(event.index, {"tool_calls": [_call_delta(event)]})
                return [self._chunks.of_text(choice, event.arguments)]
            case ChoiceDone():
                choice = {**_choice(event.index, self._last_delta(event.index)), "finish_reason": event.finish_reason}
                return [self._chunks.of({**choice, "stop_reason": event.stop_reason})]
            case Accepted():
                return self._begin(event)
            case Finished(usage):
                return self._chunks.end(usage)
            case PromptLogprobs():
                return [self._chunks.of_prompt(prompt_logprobs=prompt_logprobs_list(event))]
            case PromptEcho():
                return []
            case _:
                assert_never(event)

    def fold(self) -> Fold:
        return ChatFold(self._logprobs)

    def _begin(self, event: Accepted) -> list[dict[str, Any]]:
        self._chunks.begin(event.prompt_token_ids)
        chunks = []
        # A message that is calls alone has no content.
        content = self._form.echo if self._form.echo or self._form.has_content else None
        for index in range(self._form.choices):
            chunk = self._chunks.of(_choice(index, {"role": "assistant", "content": content, "refusal": None}))
            if self._chunks.shows_token_ids and index == 0:
                chunk["prompt_token_ids"] = list(event.prompt_token_ids[0])
            chunks.append(chunk)
        return chunks

    def _delta(self, event: TextDelta) -> list[dict[str, Any]]:
        if not self._chunks.count(event):
            return []
        choice = self._text_choice(event.index, event.text)
        if self._logprobs:
            choice["logprobs"] = _logprobs_object(event.logprobs or (), as_ids=self._form.names_ids)
        return [self._chunks.of_delta(choice, event)]

    def _last_delta(self, index: int) -> dict[str, Any]:
        """Return empty content for a choice that was to be calls alone and has neither calls nor text."""
        has_content = self._form.echo or self._form.has_content or index in self._begun
        return {} if has_content else {"content": ""}

    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        self._begun.add(index)
        return _choice(index, {"content": text})


def _choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call_delta(event: ToolCallDelta) -> dict[str, Any]:
    if event.name is None:
        return {"index": event.call_index, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.call_index, "id": new_id("call_"), "type": "function", "function": function}


class ChatFold(Fold):
    """The chat.completion object that a stream of chunks adds up to."""

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._prompt_logprobs = JsonList()

    def add(self, chunk: dict[str, Any]) -> None:
        self._answer = self._answer or {**chunk, "object": "chat.completion"}
        self._answer["usage"] = chunk["usage"]
        self._prompt_logprobs.extend(chunk.get("prompt_logprobs", ()))
        for choice in chunk["choices"]:
            index = choice["index"]
            if (folded := self._choices.get(index)) is None:
                folded = self._choices[index] = _empty_choice(index, self._logprobs)
            _fold_choice(folded, choice)

    def pieces(self) -> list[Piece]:
        choices = (_finished_choice(self._choices[index]) for index in sorted(self._choices))
        of_prompt = {"prompt_logprobs": self._prompt_logprobs} if self._prompt_logprobs else {}
        return JsonObject({**self._answer, "choices": JsonItems(choices), **of_prompt}).pieces()


def _empty_choice(index: int, logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": JsonText(), "refusal": None, "annotations": []}
    scores = JsonList() if logprobs else None
    return {"index": index, "message": message, "logprobs": scores, "finish_reason": None, "stop_reason": None}


def _fold_choice(folded: dict[str, Any], choice: dict[str, Any]) -> None:
    message, delta = folded["message"], choice["delta"]
    if text := delta.get("content"):
        message["content"].add(text)
    if reasoning := delta.get("reasoning_content"):
        message.setdefault("reasoning_content", JsonText()).add(reasoning)
    for piece in delta.get("tool_calls", ()):
        _fold_call(message.setdefault("tool_calls", []), piece)
    if logprobs := choice["logprobs"]:
        folded["logprobs"].extend(logprobs["content"])
    fold_ending(folded, choice)


def _fold_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    function = piece["function"]
    if piece["index"] == len(calls):
        calls.append({"id": piece["id"], "name": function["name"], "arguments": JsonText()})
    calls[piece["index"]]["arguments"].add(function["arguments"])


def _finished_choice(folded: dict[str, Any]) -> JsonObject:
    message = folded["message"]
    calls = message.get("tool_calls", [])
    if calls:
        message["tool_calls"] = JsonItems(map(_finished_call, calls))
    if calls and not message["content"]:
        # As at OpenAI: null where there are calls and nothing beside them.
        message["content"] = None
    if "reasoning_content" in message:
        message["reasoning"] = message["reasoning_content"]
    scores = folded["logprobs"]
    logprobs = None if scores is None else JsonObject({"content": scores, "refusal": None})
    return JsonObject({**folded, "message": JsonObject(message), "logprobs": logprobs})


def _finished_call(call: dict[str, Any]) -> JsonObject:
    function = JsonObject({"name": call["name"], "arguments": call["arguments"]})
    return JsonObject({"id": call["id"], "type": "function", "function": function})


def _logprobs_object(tokens: tuple[TokenLogprob, ...], *, as_ids: bool) -> dict[str, Any]:
    return {
        "content": [
            {**_logprob(token, as_ids), "top_logprobs": [_logprob(top, as_ids) for top in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _logprob(token: TokenLogprob, as_id: bool) -> dict[str, Any]:
    return {"token": token_text(token, as_id=as_id), "logprob": token.logprob, "bytes": list(token.bytes)}

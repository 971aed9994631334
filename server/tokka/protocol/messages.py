"""Chat messages: their wire format, and their form for chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BeforeValidator, Field

from tokka.core import ChatPrompt, Image, Tools
from tokka.protocol.common import OpenModel, Text, Unsupported, WireModel, bounded_dict, invalid, supported
from tokka.protocol.images import ImagePart, image_of
from tokka.protocol.template_values import TemplateValue

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TEMPLATE_KWARGS = 16
# Names that template variables may not replace: the template's own input and the renderer's arguments.
RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        *("messages", "conversation", "tools", "documents", "tokenizer", "tokenize", "chat_template"),
        *("add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "raise_exception", "strftime_now"),
        *("bos_token", "eos_token", "pad_token", "unk_token", "tokenizer_kwargs"),
    }
)
# Content types of OpenAI that this server does not support.
_OTHER_KINDS = frozenset({"image_url", "input_audio", "file", "video_url", "audio_url", "refusal"})


def _no_reserved_names(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in RESERVED_TEMPLATE_KWARGS:
            raise invalid(f"chat_template_kwargs may not set {name!r}: leave it out")
    return value


TemplateKwargs = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], TemplateValue],
    bounded_dict(MAX_TEMPLATE_KWARGS),
    AfterValidator(_no_reserved_names),
    Field(json_schema_extra={"additionalProperties": False, "maxProperties": MAX_TEMPLATE_KWARGS}),
]


def _text_part(value: Any) -> Any:
    return supported(value, _OTHER_KINDS, "Content parts", "send text")


def _user_part(value: Any) -> Any:
    return supported(value, _OTHER_KINDS - {"image_url"}, "Content parts", "send text")


class CacheBreakpoint(WireModel):
    """A hint for the prompt cache. Accepted without effect."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class TextPart(OpenModel):
    """A text part of a message."""

    type: Literal["text"]
    text: Text
    # The prefix cache needs no hints.
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class RefusalPart(OpenModel):
    """A refusal in an assistant message."""

    type: Literal["refusal"]
    refusal: Text


Content = (
    Text
    | Annotated[
        list[Annotated[TextPart, BeforeValidator(_text_part)]],
        Field(fail_fast=True, min_length=1, max_length=MAX_PARTS),
    ]
)
UserContent = (
    Text
    | Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type"), BeforeValidator(_user_part)]],
        Field(fail_fast=True, min_length=1, max_length=MAX_PARTS),
    ]
)
# Clients send an empty list for a message without content.
AssistantContent = (
    Text
    | Annotated[
        list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]],
        Field(fail_fast=True, max_length=MAX_PARTS),
    ]
)
ToolContent = (
    Text
    | Annotated[
        list[Annotated[TextPart, BeforeValidator(_text_part)]],
        Field(fail_fast=True, max_length=MAX_PARTS),
    ]
)
# The two code points after `\s` are blanks only in some dialects of regular expressions. Readers may use any dialect.
Name = Annotated[str, Field(pattern=r"^[^\s\u0085\ufeff<|\\/>]{1,64}$")]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class SystemMessage(OpenModel):
    """A message with instructions."""

    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None


class UserMessage(OpenModel):
    """A message of the user."""

    role: Literal["user"]
    content: UserContent
    name: Name | None = None


class FunctionCall(OpenModel):
    """The function and arguments of a tool call."""

    # Any name, because models also call functions that do not exist.
    name: str = Field(min_length=1, max_length=256)
    arguments: Text
    # The openai package adds this to messages, and clients send it back.
    parsed_arguments: Any = None


class ToolCall(OpenModel):
    """A tool call of an earlier assistant message."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"]
    function: FunctionCall
    # The openai package's stream helper leaves this in its messages.
    index: int | None = None


class AssistantMessage(OpenModel):
    """A message of the model."""

    role: Literal["assistant"]
    content: AssistantContent | None = None
    name: Name | None = None
    refusal: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = Field(None, max_length=128)
    audio: Unsupported = None
    function_call: Unsupported = None
    # The openai package's message object has these. Sending a response back as history must work.
    annotations: list[Any] | None = Field(None, max_length=0)
    parsed: Any = None
    # Our own responses have both. Templates that show earlier reasoning read the first one.
    reasoning_content: Text | None = None
    reasoning: Text | None = None


class ToolMessage(OpenModel):
    """The result of a tool call."""

    role: Literal["tool"]
    content: ToolContent
    tool_call_id: str = Field(min_length=1, max_length=256)
    # The function's name. OpenAI does not have it, but clients send it. It is ignored: the tool call already has it.
    name: Name | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def text_of(content: str | Sequence[TextPart | RefusalPart | ImagePart] | None) -> str:
    """Return a message's text as one string; the texts of a list are joined by line ends."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = (part for part in content if not isinstance(part, ImagePart))
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in texts)


def images_of(messages: Sequence[Message]) -> tuple[Image, ...]:
    """Return the images of all messages, in order."""
    return tuple(
        image_of(part.url, f"messages[{place}].content[{at}]")
        for place, message in enumerate(messages)
        if isinstance(message.content, list)
        for at, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    )


def unknown_fields(messages: Sequence[Message]) -> int:
    """Return the number of unknown fields of messages, their parts and tool calls."""
    unknown = 0
    for message in messages:
        unknown += message.unknown
        if isinstance(message.content, list):
            unknown += sum(part.unknown for part in message.content)
        if isinstance(message, AssistantMessage):
            unknown += sum(call.unknown + call.function.unknown for call in message.tool_calls or ())
    return unknown


def plain_message(message: SystemMessage | UserMessage | AssistantMessage | ToolMessage) -> dict[str, Any]:
    """Return the message as chat templates know it: text content, tool arguments as an object."""
    plain: dict[str, Any] = {"role": message.role, "content": text_of(message.content)}
    match message:
        case ToolMessage():
            plain["tool_call_id"] = message.tool_call_id
        case AssistantMessage():
            if message.refusal and not plain["content"]:
                plain["content"] = message.refusal
            if thoughts := message.reasoning_content or message.reasoning:
                plain["reasoning_content"] = thoughts
            if message.tool_calls:
                plain["tool_calls"] = [
                    plain_call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls
                ]
        case SystemMessage() | UserMessage():
            pass
    return plain


def plain_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """Return a tool call as chat templates know it: its arguments as an object."""
    try:
        value: Any = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        # A model wrote this invalid JSON. The template gets it as text.
        value = arguments
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}


def check_continuation(messages: Sequence[Message], add_generation_prompt: bool | None, continues: bool | None) -> None:
    """Raise if the request asks to continue a last message that cannot be continued."""
    if continues and add_generation_prompt:
        raise invalid(
            "continue_final_message and add_generation_prompt cannot be combined: leave one out",
            "continue_final_message",
        )
    if continues and messages[-1].role != "assistant":
        raise invalid("continue_final_message needs an assistant message at the end", "continue_final_message")


def check_tool_messages(messages: Sequence[Message]) -> None:
    """Raise if a tool message has no matching tool call before it."""
    made: set[str] = set()
    for place, message in enumerate(messages):
        match message:
            case AssistantMessage(tool_calls=list(calls)):
                made.update(call.id for call in calls)
            case ToolMessage(tool_call_id=call_id) if call_id not in made:
                raise invalid(
                    "No assistant message before it has a tool call with this id: send that message, too",
                    f"messages[{place}].tool_call_id",
                )


def chat_prompt(
    messages: Sequence[Message],
    add_generation_prompt: bool | None,
    continues: bool | None,
    template_kwargs: Mapping[str, Any] | None = None,
    tools: Tools | None = None,
    reasoning_effort: str | None = None,
    verbosity: str | None = None,
) -> ChatPrompt:
    """Return the conversation as the engine renders it. Default: start a new message, or continue the last."""
    return ChatPrompt(
        messages=tuple(plain_message(message) for message in messages),
        tools=tools,
        add_generation_prompt=not continues if add_generation_prompt is None else add_generation_prompt,
        continue_final_message=bool(continues),
        template_kwargs=template_kwargs or {},
        reasoning_effort=reasoning_effort,
        verbosity=verbosity,
        images=images_of(messages),
    )

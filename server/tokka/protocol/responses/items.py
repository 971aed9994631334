"""Items: the input of a response.

A plain item is a dict in the form in which the API lists it. Stored responses hold plain items.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from tokka.protocol.common import OpenModel, Text, invalid, new_id, supported
from tokka.protocol.messages import MAX_MESSAGES, MAX_PARTS

PlainItem = dict[str, Any]
# Items of tools that only OpenAI's server runs, in conversations that began there.
ForeignKind = Literal[
    "web_search_call",
    "file_search_call",
    "computer_call",
    "computer_call_output",
    "code_interpreter_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "tool_search_call",
    "tool_search_output",
]
# Content types of OpenAI that this server does not support.
_OTHER_PARTS = frozenset({"input_file", "input_audio", "input_video", "computer_screenshot"})
# The beginning of the content of our own compaction items.
_SEAL = "tokka-summary."
_ItemId = Annotated[str, Field(min_length=1, max_length=256)]
_Label = Annotated[str, Field(max_length=64)]


def sealed(summary: str) -> str:
    """Return a summary in the form in which clients keep it. It is no secret: they have seen the conversation."""
    return _SEAL + base64.urlsafe_b64encode(summary.encode()).decode()


def unsealed(content: str) -> str | None:
    """Return the summary in a compaction item, or None if this server did not make it."""
    if not content.startswith(_SEAL):
        return None
    try:
        return base64.b64decode(content.removeprefix(_SEAL), altchars=b"-_", validate=True).decode()
    except ValueError:
        return None


def _or_missing(kind: str) -> WithJsonSchema:
    """Document a type that `_with_type` adds."""
    return WithJsonSchema({"enum": [kind, None], "default": kind})


def _known_part(value: Any) -> Any:
    return supported(value, _OTHER_PARTS, "Content parts", "send text or images")


class TextPart(OpenModel):
    """A text part of an item."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: Text
    # Our own responses have both. Sending one back must work.
    annotations: list[Any] | None = Field(None, max_length=MAX_PARTS)
    logprobs: Any = None


class RefusalPart(OpenModel):
    """A refusal of the model."""

    type: Literal["refusal"]
    refusal: Text


class ImagePart(OpenModel):
    """An image. Only for models that take images."""

    type: Literal["input_image"]
    image_url: Text | None = Field(
        None, description="`data:image/png;base64,...`; also jpeg, webp and gif. The server fetches no URLs."
    )
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: str | None = Field(None, max_length=256)


_Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]
_Parts = Annotated[list[Annotated[_Part, BeforeValidator(_known_part)]], Field(fail_fast=True, max_length=MAX_PARTS)]
Content = Text | _Parts


class MessageItem(OpenModel):
    """A message."""

    type: Annotated[Literal["message"], _or_missing("message")] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: Content
    id: _ItemId | None = None
    status: _Label | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    def plain(self) -> PlainItem:
        kind = "output_text" if self.role == "assistant" else "input_text"
        item = {
            "type": "message",
            "id": self.id or new_id("msg_"),
            "status": self.status or "completed",
            "role": self.role,
            "content": _plain_parts(self.content, kind),
        }
        return item if self.phase is None else {**item, "phase": self.phase}


class FunctionCallItem(OpenModel):
    """A function call of the model."""

    type: Literal["function_call"]
    call_id: _ItemId
    name: str = Field(
        min_length=1, max_length=256, description="Any name: models also call functions that do not exist."
    )
    arguments: Text
    namespace: _ItemId | None = None
    id: _ItemId | None = None
    status: _Label | None = None
    # The openai package adds this to items, and clients send it back.
    parsed_arguments: Any = None

    def plain(self) -> PlainItem:
        item = {
            "type": "function_call",
            "id": self.id or new_id("fc_"),
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
            "status": self.status or "completed",
        }
        return item if self.namespace is None else {**item, "namespace": self.namespace}


class FunctionOutputItem(OpenModel):
    """The result of a function call."""

    type: Literal["function_call_output"]
    call_id: _ItemId
    output: Content
    id: _ItemId | None = None
    status: _Label | None = None

    def plain(self) -> PlainItem:
        return {
            "type": "function_call_output",
            "id": self.id or new_id("fco_"),
            "call_id": self.call_id,
            "output": self.output if isinstance(self.output, str) else _plain_parts(self.output, "input_text"),
            "status": self.status or "completed",
        }


class CustomCallItem(OpenModel):
    """A call of a custom tool: the model sees a function call with one argument, `input`."""

    type: Literal["custom_tool_call"]
    call_id: _ItemId
    name: str = Field(min_length=1, max_length=256)
    input: Text
    namespace: _ItemId | None = None
    id: _ItemId | None = None
    status: _Label | None = None

    def plain(self) -> PlainItem:
        arguments = orjson.dumps({"input": self.input}).decode()
        return FunctionCallItem(
            type="function_call",
            call_id=self.call_id,
            name=self.name,
            arguments=arguments,
            namespace=self.namespace,
            id=self.id,
            status=self.status,
        ).plain()


class CustomOutputItem(OpenModel):
    """The result of a call of a custom tool."""

    type: Literal["custom_tool_call_output"]
    call_id: _ItemId
    output: Content
    id: _ItemId | None = None
    status: _Label | None = None

    def plain(self) -> PlainItem:
        return FunctionOutputItem(
            type="function_call_output", call_id=self.call_id, output=self.output, id=self.id, status=self.status
        ).plain()


class ReasoningItem(OpenModel):
    """Reasoning of the model. Templates that show earlier reasoning get its content."""

    type: Literal["reasoning"]
    summary: _Parts | None = None
    content: _Parts | None = None
    # Reasoning of other servers, which only they can read.
    encrypted_content: Text | None = None
    id: _ItemId | None = None
    status: _Label | None = None

    def plain(self) -> PlainItem:
        item = {
            "type": "reasoning",
            "id": self.id or new_id("rs_"),
            "summary": _plain_parts(self.summary or [], "summary_text"),
            "content": _plain_parts(self.content or [], "reasoning_text"),
        }
        return item if self.encrypted_content is None else {**item, "encrypted_content": self.encrypted_content}


class ReferenceItem(OpenModel):
    """An item of a stored response, by its id."""

    type: Annotated[Literal["item_reference"], _or_missing("item_reference")] = "item_reference"
    id: _ItemId

    def plain(self) -> PlainItem:
        return {"type": "item_reference", "id": self.id}


class CompactionItem(OpenModel):
    """The summary of an earlier part of the conversation, as POST /v1/responses/compact returns it."""

    type: Literal["compaction"]
    encrypted_content: Text
    id: _ItemId | None = None

    @model_validator(mode="after")
    def _is_ours(self) -> Self:
        if unsealed(self.encrypted_content) is None:
            raise invalid("Another server made this summary, and only that one can read it", ".encrypted_content")
        return self

    def plain(self) -> PlainItem:
        return {
            "type": "compaction",
            "id": self.id or new_id("cmp_"),
            "encrypted_content": self.encrypted_content,
        }


class ForeignItem(OpenModel):
    """An item of a tool that this server does not run. It is left out of the prompt."""

    type: ForeignKind
    id: _ItemId | None = None

    def plain(self) -> PlainItem:
        return {"type": self.type, "id": self.id or new_id("item_")}


def _with_type(value: Any) -> Any:
    """Add the type that items without one have: a message has a role, a reference an id and no content."""
    if isinstance(value, dict) and value.get("type") is None:
        if "role" in value:
            return {**value, "type": "message"}
        if "id" in value and "content" not in value:
            return {**value, "type": "item_reference"}
    return value


InputItem = Annotated[
    Annotated[
        MessageItem
        | FunctionCallItem
        | FunctionOutputItem
        | CustomCallItem
        | CustomOutputItem
        | ReasoningItem
        | ReferenceItem
        | CompactionItem
        | ForeignItem,
        Field(discriminator="type"),
    ],
    BeforeValidator(_with_type),
]
Input = Text | Annotated[list[InputItem], Field(fail_fast=True, max_length=MAX_MESSAGES)]


def plain_items(given: str | Sequence[InputItem] | None) -> tuple[PlainItem, ...]:
    """Return the input as plain items. Text is a message of the user."""
    if given is None:
        return ()
    if isinstance(given, str):
        return (MessageItem(role="user", content=given).plain(),)
    return tuple(item.plain() for item in given)


def unknown_fields(given: str | Sequence[InputItem] | None) -> int:
    """Return the number of unknown fields of items and their parts, and of items that are left out."""
    if given is None or isinstance(given, str):
        return 0
    return sum(_unknown(item) for item in given)


def _unknown(item: InputItem) -> int:
    if isinstance(item, ForeignItem):
        return 1
    lists = (getattr(item, name, None) for name in ("content", "output", "summary"))
    in_parts: int = sum(part.unknown for parts in lists if isinstance(parts, list) for part in parts)
    return item.unknown + in_parts


def _plain_parts(content: str | Sequence[TextPart | RefusalPart | ImagePart], kind: str) -> list[dict[str, Any]]:
    """Return content as a list of parts, with its texts as parts of this kind."""
    if isinstance(content, str):
        return [_plain_text(content, kind)]
    return [_plain_part(part, kind) for part in content]


def _plain_part(part: TextPart | RefusalPart | ImagePart, kind: str) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return _plain_text(text, kind)
        case RefusalPart(refusal=refusal):
            return {"type": "refusal", "refusal": refusal}
        case ImagePart(image_url=url, detail=detail):
            return {"type": "input_image", "image_url": url, "detail": detail or "auto"}


def _plain_text(text: str, kind: str) -> dict[str, Any]:
    return {"type": kind, "text": text, **({"annotations": []} if kind == "output_text" else {})}

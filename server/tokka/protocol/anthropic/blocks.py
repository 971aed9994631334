"""The content blocks of Anthropic's messages, and the conversation in the form of chat templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tokka.core import Image
from tokka.protocol.common import OpenModel, Text, invalid, supported
from tokka.protocol.images import image_of
from tokka.protocol.messages import MAX_PARTS

# Prefixed to the text of a failed tool's result: chat templates have no field for it.
ERROR_PREFIX = "Error: "
# Claude Code writes a hash of each request into a system block. In the prompt, it would defeat the prefix cache.
_BILLING = "x-anthropic-billing-header"
_UNSUPPORTED_DOCUMENTS = frozenset({"base64", "url", "file"})


class Block(OpenModel):
    """A content block. `cache_control` is accepted without effect: the prefix cache is always on."""

    cache_control: dict[str, Any] | None = None


class TextBlock(Block):
    """Text."""

    type: Literal["text"]
    text: Text
    citations: list[Any] | None = Field(None, max_length=MAX_PARTS)


class Base64Source(OpenModel):
    """The bytes of an image."""

    type: Literal["base64"]
    media_type: str = Field(max_length=64)
    data: Text


class UrlSource(OpenModel):
    """The address of an image."""

    type: Literal["url"]
    url: Text


class ImageBlock(Block):
    """An image. Only for models that take images."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]

    @property
    def url(self) -> str:
        source = self.source
        return source.url if isinstance(source, UrlSource) else f"data:{source.media_type};base64,{source.data}"


class TextSource(OpenModel):
    """The text of a document."""

    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: Text


class ContentSource(OpenModel):
    """The blocks of a document."""

    type: Literal["content"]
    content: Text | Annotated[list[TextBlock], Field(fail_fast=True, max_length=MAX_PARTS)]


def _text_source(value: Any) -> Any:
    return supported(value, _UNSUPPORTED_DOCUMENTS, "Documents", "send the document's text")


class DocumentBlock(Block):
    """A document, as text."""

    type: Literal["document"]
    source: Annotated[
        TextSource | ContentSource,
        Field(discriminator="type"),
        BeforeValidator(_text_source),
    ]
    title: Text | None = None
    context: Text | None = None


class SearchResultBlock(Block):
    """A search result."""

    type: Literal["search_result"]
    source: Text
    title: Text
    content: Annotated[list[TextBlock], Field(fail_fast=True, max_length=MAX_PARTS)]


class ToolReferenceBlock(Block):
    """A tool that a search for tools found."""

    type: Literal["tool_reference"]
    tool_name: str = Field(max_length=256)


class ToolUseBlock(Block):
    """A tool call of the model."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=256)
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    toolset_name: str | None = Field(None, max_length=256)


_ResultBlock = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock, Field(discriminator="type")
]


class ToolResultBlock(Block):
    """The result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=256)
    content: Text | Annotated[list[_ResultBlock], Field(fail_fast=True, max_length=MAX_PARTS)] | None = None
    is_error: bool | None = Field(None, description="true: the tool failed. The model reads `Error: ` before the text.")


class ThinkingBlock(Block):
    """Earlier reasoning of the model. The signature is not verified."""

    type: Literal["thinking"]
    thinking: Text
    signature: Text | None = None


class RedactedThinkingBlock(Block):
    """Earlier reasoning of another server that only that server can read. It is left out of the prompt."""

    type: Literal["redacted_thinking"]
    data: Text


UserBlock = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolResultBlock, Field(discriminator="type")
]
AssistantBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock, Field(discriminator="type")
]


class UserMessage(OpenModel):
    """A turn of the user."""

    role: Literal["user"]
    content: Text | Annotated[list[UserBlock], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)]


class AssistantMessage(OpenModel):
    """A turn of the model. The last message may begin the response, which the model then continues."""

    role: Literal["assistant"]
    content: Text | Annotated[list[AssistantBlock], Field(fail_fast=True, max_length=MAX_PARTS)]


class SystemMessage(OpenModel):
    """Instructions inside the conversation."""

    role: Literal["system"]
    content: Text | Annotated[list[TextBlock], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)]


AnthropicMessage = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]
SystemText = Text | Annotated[list[TextBlock], Field(fail_fast=True, max_length=MAX_PARTS)]
_Readable = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


def plain_messages(system: SystemText | None, messages: Sequence[AnthropicMessage]) -> tuple[dict[str, Any], ...]:
    """Return the conversation as chat templates know it. Adjacent messages of one role become one."""
    plain: list[dict[str, Any]] = []
    if text := _system_text(system):
        plain.append({"role": "system", "content": text})
    for message in messages:
        for each in _plain(message):
            if plain and plain[-1]["role"] == each["role"] and each["role"] in ("user", "assistant"):
                plain[-1] = _joined(plain[-1], each)
            else:
                plain.append(each)
    return tuple(plain)


def images_of(messages: Sequence[AnthropicMessage]) -> tuple[Image, ...]:
    """Return the images of all messages, in order."""
    return tuple(image_of(block.url, place) for place, block in _all_blocks(messages) if isinstance(block, ImageBlock))


def unknown_fields(messages: Sequence[AnthropicMessage]) -> int:
    """Return the number of unknown fields of messages and their blocks."""
    return sum(message.unknown for message in messages) + sum(block.unknown for _, block in _all_blocks(messages))


def check_results(messages: Sequence[AnthropicMessage]) -> None:
    """Raise if a tool result has no matching tool call before it."""
    made: set[str] = set()
    for place, block in _all_blocks(messages):
        if isinstance(block, ToolUseBlock):
            made.add(block.id)
        elif isinstance(block, ToolResultBlock) and block.tool_use_id not in made:
            raise invalid(
                "No message before it has a tool_use block with this id: send that message, too",
                f"{place}.tool_use_id",
            )


def _all_blocks(messages: Sequence[AnthropicMessage]) -> Iterator[tuple[str, Block]]:
    """Yield all blocks, also inside tool results, each with its place in the body."""
    for number, message in enumerate(messages):
        blocks: Sequence[Block] = message.content if isinstance(message.content, list) else ()
        for at, block in enumerate(blocks):
            place = f"messages[{number}].content[{at}]"
            yield place, block
            if isinstance(block, ToolResultBlock) and isinstance(block.content, list):
                for inner, part in enumerate(block.content):
                    yield f"{place}.content[{inner}]", part


def _system_text(system: SystemText | None) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    return _text(block for block in system if not block.text.startswith(_BILLING))


def _plain(message: AnthropicMessage) -> Iterator[dict[str, Any]]:
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    match message:
        case AssistantMessage(content=list(blocks)):
            yield _plain_assistant(blocks)
        case UserMessage(content=list(blocks)):
            # As at Anthropic, results come before the user's text.
            yield from (_plain_result(block) for block in blocks if isinstance(block, ToolResultBlock))
            if rest := [block for block in blocks if not isinstance(block, ToolResultBlock)]:
                yield {"role": "user", "content": _text(rest)}
        case SystemMessage(content=list(parts)):
            yield {"role": "system", "content": _text(parts)}


def _plain_assistant(blocks: Sequence[AssistantBlock]) -> dict[str, Any]:
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    plain: dict[str, Any] = {"role": "assistant", "content": _text(texts)}
    if thoughts := [block.thinking for block in blocks if isinstance(block, ThinkingBlock) and block.thinking]:
        plain["reasoning_content"] = "\n".join(thoughts)
    calls = [block for block in blocks if isinstance(block, ToolUseBlock)]
    if calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.input}}
            for call in calls
        ]
    return plain


def _plain_result(block: ToolResultBlock) -> dict[str, Any]:
    content = block.content or ""
    text = content if isinstance(content, str) else _text(content)
    return {
        "role": "tool",
        "content": ERROR_PREFIX + text if block.is_error else text,
        "tool_call_id": block.tool_use_id,
    }


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return two messages of one role as one."""
    joined = {**first, **second}
    for name in ("content", "reasoning_content"):
        if texts := [text for message in (first, second) if (text := message.get(name))]:
            joined[name] = "\n".join(texts)
    if calls := [*first.get("tool_calls", ()), *second.get("tool_calls", ())]:
        joined["tool_calls"] = calls
    return joined


def _text(blocks: Iterator[_Readable] | Sequence[_Readable]) -> str:
    return "\n".join(text for block in blocks for text in _texts(block))


def _texts(block: _Readable) -> Iterator[str]:
    match block:
        case TextBlock(text=text):
            yield text
        case DocumentBlock(source=source):
            yield from (text for text in (block.title, block.context) if text)
            if isinstance(source, TextSource):
                yield source.data
            else:
                yield source.content if isinstance(source.content, str) else _text(source.content)
        case SearchResultBlock(content=content):
            yield from (block.title, block.source, _text(content))
        case ToolReferenceBlock(tool_name=name):
            yield name
        case ImageBlock():
            pass

"""The response of POST /v1/messages: Anthropic's events, and the plain message that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, assert_never

import orjson

from tokka.core import (
    Accepted,
    ChoiceDone,
    Embedding,
    Event,
    Finished,
    PromptEcho,
    PromptLogprobs,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from tokka.errors import TokkaError
from tokka.protocol import sse
from tokka.protocol.anthropic.errors import error_body
from tokka.protocol.chunks import AnswerForm, ChunkTemplate, Encoder, Fold
from tokka.protocol.common import new_id
from tokka.protocol.folding import JsonItems, JsonObject, JsonText, Piece

PING = {"type": "ping"}
TOOL_ID_PREFIX = "toolu_"
# Clients drop thinking blocks without a signature. Ours is only opaque.
SIGNATURE_PREFIX = "tokka-"


class MessagesEncoder(Encoder):
    """Encode events as the events of one message, which has one block at a time in progress."""

    end = b""
    keep_alive = sse.event(PING, PING["type"])

    def __init__(self, form: AnswerForm, message_id: str, fingerprint: str) -> None:
        """`fingerprint`: unused; Anthropic's responses have no place for it."""
        self._form = form
        self._id = message_id
        # The type of the block in progress. None: no block.
        self._kind: str | None = None
        self._index = -1
        # The event around the text of a text block.
        self._template: ChunkTemplate | None = None
        self._has_called = False
        self._stop = _stop(None)

    def feed(self, event: Event) -> list[dict[str, Any]]:
        return list(self._feed(event))

    def encode(self, event: Event) -> Iterable[bytes]:
        if isinstance(event, TextDelta) and self._kind == "text":
            return (self._text_event(event.text),) if event.text else ()
        return (sse.event(each, each["type"]) for each in self._feed(event))

    def fail(self, error: TokkaError) -> Iterable[bytes]:
        return (sse.event(error_body(error), "error"),)

    def fold(self) -> Fold:
        return MessageFold()

    def _feed(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case TextDelta():
                if event.text:
                    # Anthropic's schema demands the field, and the AI SDK refuses null.
                    yield from self._begin("text", {"text": "", "citations": []})
                    yield self._delta("text_delta", text=event.text)
            case ReasoningDelta():
                yield from self._begin("thinking", {"thinking": "", "signature": ""})
                if self._form.shows_reasoning:
                    yield self._delta("thinking_delta", thinking=event.text)
            case ToolCallDelta():
                yield from self._call(event)
            case ChoiceDone():
                yield from self._close()
                self._stop = self._stop_of(event)
            case Accepted():
                yield {"type": "message_start", "message": self._message(event)}
                yield PING
            case Finished(usage):
                yield {"type": "message_delta", "delta": self._stop, "usage": _usage(usage)}
                yield {"type": "message_stop"}
            case PromptEcho() | PromptLogprobs() | Embedding():
                pass
            case _:
                assert_never(event)

    def _message(self, event: Accepted) -> dict[str, Any]:
        # The cached tokens are known only at the end.
        usage = _whole_usage(_usage(Usage(sum(map(len, event.prompt_token_ids)), 0)))
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._form.model, "content": []}
        return {**head, **self._stop, "usage": usage}

    def _call(self, event: ToolCallDelta) -> Iterator[dict[str, Any]]:
        if event.name is not None:
            self._has_called = True
            yield from self._close()
            call = {"id": new_id(TOOL_ID_PREFIX), "name": event.name, "input": {}, "caller": {"type": "direct"}}
            yield from self._begin("tool_use", call)
        if event.arguments:
            yield self._delta("input_json_delta", partial_json=event.arguments)

    def _text_event(self, text: str) -> bytes:
        """Return the event of a text delta as bytes, because nearly all events of a stream are these."""
        if self._template is None:
            marker = new_id("text-")
            delta = self._delta("text_delta", text=marker)
            self._template = ChunkTemplate(delta, marker, delta["type"])
        return self._template.fill(text)

    def _begin(self, kind: str, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Begin a block, unless one of this kind is in progress. Blocks never overlap."""
        if self._kind == kind:
            return
        yield from self._close()
        self._kind = kind
        self._index += 1
        self._template = None
        yield {"type": "content_block_start", "index": self._index, "content_block": {"type": kind, **fields}}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._kind is None:
            return
        if self._kind == "thinking":
            yield self._delta("signature_delta", signature=new_id(SIGNATURE_PREFIX))
        self._kind = None
        yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, kind: str, **fields: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, **fields}}

    def _stop_of(self, done: ChoiceDone) -> dict[str, Any]:
        if done.finish_reason == "length":
            return _stop("max_tokens")
        if self._has_called:
            return _stop("tool_use")
        if isinstance(done.stop_reason, str):
            return _stop("stop_sequence", done.stop_reason)
        return _stop("end_turn")


class MessageFold(Fold):
    """Fold the events of a stream into a message."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: list[dict[str, Any]] = []

    def add(self, chunk: dict[str, Any]) -> None:
        match chunk["type"]:
            case "message_start":
                self._message = chunk["message"]
            case "content_block_start":
                block = chunk["content_block"]
                grown = {name: JsonText() for name, value in block.items() if name in ("text", "thinking", "input")}
                self._blocks.append({**block, **grown})
            case "content_block_delta":
                _grow(self._blocks[-1], chunk["delta"])
            case "message_delta":
                self._message |= {**chunk["delta"], "usage": _whole_usage(chunk["usage"])}

    def pieces(self) -> list[Piece]:
        blocks = (JsonObject(_finished(block)) for block in self._blocks)
        return JsonObject({**self._message, "content": JsonItems(blocks)}).pieces()


def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
    match delta["type"]:
        case "text_delta":
            block["text"].add(delta["text"])
        case "thinking_delta":
            block["thinking"].add(delta["thinking"])
        case "input_json_delta":
            block["input"].add(delta["partial_json"])
        case "signature_delta":
            block["signature"] = delta["signature"]


def _finished(block: dict[str, Any]) -> dict[str, Any]:
    return {**block, "input": _input(block["input"])} if block["type"] == "tool_use" else block


def _input(arguments: JsonText) -> dict[str, Any]:
    """Return the arguments of a call. A call that was cut short has none."""
    try:
        value = orjson.loads(orjson.loads(b"".join(arguments.pieces())) or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _stop(reason: str | None, sequence: str | None = None) -> dict[str, Any]:
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None, "container": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Return Anthropic's usage object. Its input tokens do not include the cached ones."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "server_tool_use": None,
    }


def _whole_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Return the usage object of a message, which has more fields than the one at the end of a stream."""
    return {**usage, "cache_creation": None, "inference_geo": None, "service_tier": "standard"}

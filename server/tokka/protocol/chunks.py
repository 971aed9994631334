"""The seam of all encoders, and the common parts of the chunks of chat and text completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import orjson

from tokka.core import Event, TextDelta, Usage
from tokka.errors import TokkaError
from tokka.protocol import sse
from tokka.protocol.common import new_id, padding, token_counts, usage_object
from tokka.protocol.folding import JsonList, Piece, dumps


class AnyForm(Protocol):
    """The form of the response that a request asks for: all that its encoder needs of the body."""

    @property
    def stream(self) -> bool: ...


Form = TypeVar("Form", bound=AnyForm)


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form of a chat or text completion."""

    model: str
    stream: bool
    # Choices of each prompt that are returned, and that are generated.
    choices: int
    candidates: int
    # Alternatives reported for each token; None: no logprobs.
    alternatives: int | None
    include_usage: bool
    continuous_usage: bool
    obfuscates: bool
    shows_token_ids: bool
    # The client's own id for the response, without the prefix of the endpoint.
    answer_id: str | None = None
    shows_reasoning: bool = True
    # Name the tokens of logprobs by their ids.
    names_ids: bool = False
    # False if a message may be tool calls alone.
    has_content: bool = True
    # Text returned before each choice's own.
    echo: str = ""

    def id_of(self, prefix: str, request_id: str) -> str:
        """Return the response id: the client's own after the endpoint's prefix, or the request's."""
        return f"{prefix}{self.answer_id}" if self.answer_id else request_id


class Chunks:
    """Build the chunks of a response around an endpoint's own choices, and count its tokens."""

    def __init__(self, form: AnswerForm, head: dict[str, Any]) -> None:
        self._head = head
        self._usage = form.include_usage or not form.stream
        self._continuous = form.continuous_usage
        self._obfuscates = form.obfuscates
        self.shows_token_ids = form.shows_token_ids
        # Chunks with new text differ in that text alone.
        self.are_alike = not (self._continuous or self._obfuscates or self.shows_token_ids)
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def begin(self, prompt_token_ids: Sequence[Sequence[int]]) -> None:
        self._prompt_tokens = sum(map(len, prompt_token_ids))

    def count(self, event: TextDelta) -> bool:
        """Count a delta's tokens. Return whether it holds anything to send."""
        self._completion_tokens += len(event.token_ids)
        return bool(event.text or event.logprobs or (self.shows_token_ids and event.token_ids))

    def of(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk of a choice."""
        if self.shows_token_ids:
            choice.setdefault("token_ids", [])
        chunk = {**self._head, "choices": [choice]}
        if self._continuous:
            # The details are known only at the end.
            chunk["usage"] = token_counts(self._prompt_tokens, self._completion_tokens)
        elif self._usage:
            chunk["usage"] = None
        return chunk

    def of_prompt(self, **fields: Any) -> dict[str, Any]:
        """Return a chunk with fields of the prompt and no choices."""
        chunk = {**self._head, "choices": [], **fields}
        return {**chunk, "usage": None} if self._usage else chunk

    def of_delta(self, choice: dict[str, Any], event: TextDelta) -> dict[str, Any]:
        """Return the chunk of a choice with new text."""
        if self.shows_token_ids:
            choice["token_ids"] = list(event.token_ids)
        return self.of_text(choice, event.text)

    def of_text(self, choice: dict[str, Any], text: str) -> dict[str, Any]:
        """Return the chunk of a choice with this text, padded if its size must not reveal the text's length."""
        chunk = self.of(choice)
        if self._obfuscates:
            chunk["obfuscation"] = padding(text)
        return chunk

    def end(self, usage: Usage) -> list[dict[str, Any]]:
        """Return the usage chunk, if the request asks for one."""
        return [{**self._head, "choices": [], "usage": usage_object(usage)}] if self._usage else []


class Fold(ABC):
    """The plain response of a request, built from the chunks of its stream."""

    @abstractmethod
    def add(self, chunk: dict[str, Any]) -> None: ...

    @abstractmethod
    def pieces(self) -> list[Piece]:
        """Return the response as JSON. Call it once, after the last chunk."""


class Encoder(ABC):
    """Encode the events of a request for one endpoint: as objects to fold, or as server-sent events."""

    # The bytes after the last event of a stream. Empty: none.
    end: bytes = sse.DONE
    # The bytes that show a client that a silent stream is alive.
    keep_alive: bytes = sse.KEEP_ALIVE

    @abstractmethod
    def feed(self, event: Event) -> Iterable[dict[str, Any]]: ...

    @abstractmethod
    def fold(self) -> Fold:
        """Return a new fold for the objects of this response."""

    @abstractmethod
    def encode(self, event: Event) -> Iterable[bytes]:
        """Return the objects that `feed` would return as server-sent events, each in one piece."""

    def fail(self, error: TokkaError) -> Iterable[bytes]:
        """Return the server-sent events that end a stream with an error."""
        return (sse.event(error.body()),)


class StreamEncoder(Encoder):
    """Encode events as chunks of choices."""

    def __init__(self, chunks: Chunks, *, scored: bool) -> None:
        self._chunks = chunks
        self._uses_templates = chunks.are_alike and not scored
        # By choice.
        self._templates: dict[int, ChunkTemplate] = {}

    @abstractmethod
    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        """Return a choice with text only."""

    def encode(self, event: Event) -> Iterable[bytes]:
        if not (self._uses_templates and isinstance(event, TextDelta)):
            return map(sse.json_event, map(dumps, self.feed(event)))
        if not event.text:
            return ()
        template = self._templates.get(event.index)
        if template is None:
            marker = new_id("text-")
            chunk = self._chunks.of_delta(self._text_choice(event.index, marker), event)
            template = self._templates[event.index] = ChunkTemplate(chunk, marker)
        return (template.fill(event.text),)


class ChunkTemplate:
    """The event around a chunk's text. Nearly all chunks of a stream differ in their text alone."""

    __slots__ = ("_head", "_tail")

    def __init__(self, chunk: dict[str, Any], marker: str, name: str | None = None) -> None:
        """`marker`: stands for the text in the chunk, and occurs nowhere else in it. `name`: the event's name."""
        self._head, self._tail = sse.event(chunk, name).split(orjson.dumps(marker))

    def fill(self, text: str) -> bytes:
        return b"%b%b%b" % (self._head, sse.safe_json(orjson.dumps(text)), self._tail)


def fold_ending(folded: dict[str, Any], choice: dict[str, Any]) -> None:
    """Add a chunk's token ids, finish reason and stop reason to the folded choice."""
    if "token_ids" in choice:
        folded["token_ids"] = folded["token_ids"] or JsonList()
        folded["token_ids"].extend(choice["token_ids"])
    if choice["finish_reason"]:
        folded["finish_reason"] = choice["finish_reason"]
        folded["stop_reason"] = choice["stop_reason"]

"""The output items of a response while they grow: their events, and their final form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import orjson

from tokka.core import TokenLogprob
from tokka.protocol import sse
from tokka.protocol.common import new_id, token_text
from tokka.protocol.responses.items import PlainItem

_TEXT_DELTA = "response.output_text.delta"
# The types of events, each with its fields.
ItemEvents = list[tuple[str, dict[str, Any]]]


class OpenItem(ABC):
    """An item in progress."""

    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def opened(self) -> ItemEvents:
        """Return the events at the start of the item."""
        return [("response.output_item.added", {"item": self._begun()})]

    def closed(self, status: str) -> ItemEvents:
        """Return the events at the end of the item."""
        return [*self._ended(), ("response.output_item.done", {"item": self.done(status)})]

    @abstractmethod
    def done(self, status: str) -> PlainItem:
        """Return the whole item."""

    @abstractmethod
    def _begun(self) -> PlainItem: ...

    @abstractmethod
    def _ended(self) -> ItemEvents: ...


class OpenMessage(OpenItem):
    """A message with one part of text."""

    # Whether its events differ in sequence number and text alone.
    is_plain = False

    def __init__(self, item_id: str, place: int) -> None:
        """`place`: its index in the output."""
        super().__init__(item_id)
        self._at = {"item_id": item_id, "content_index": 0}
        self._logprobs: list[dict[str, Any]] = []
        fields = {"type": _TEXT_DELTA, "item_id": item_id, "output_index": place, "content_index": 0, "logprobs": []}
        self._head = orjson.dumps(fields)[:-1]

    def opened(self) -> ItemEvents:
        return [*super().opened(), ("response.content_part.added", {**self._at, "part": self._part("", [])})]

    def add(self, text: str, logprobs: list[dict[str, Any]], padded: Mapping[str, Any]) -> ItemEvents:
        self._texts.append(text)
        self._logprobs += logprobs
        return [(_TEXT_DELTA, {**self._at, "delta": text, "logprobs": logprobs, **padded})]

    def encoded(self, sequence: int, text: str) -> bytes:
        """Return the event of a delta, with the fields that `add` returns."""
        self._texts.append(text)
        data = b'%b,"sequence_number":%d,"delta":%b}' % (self._head, sequence, orjson.dumps(text))
        return sse.named_event(_TEXT_DELTA, data)

    def done(self, status: str) -> PlainItem:
        return {**self._begun(), "status": status, "content": [self._part(self.text, self._logprobs)]}

    def _begun(self) -> PlainItem:
        return {"type": "message", "id": self.id, "status": "in_progress", "role": "assistant", "content": []}

    def _ended(self) -> ItemEvents:
        text = self.text
        return [
            ("response.output_text.done", {**self._at, "text": text, "logprobs": self._logprobs}),
            ("response.content_part.done", {**self._at, "part": self._part(text, self._logprobs)}),
        ]

    @staticmethod
    def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


class OpenCall(OpenItem):
    """A function call."""

    def __init__(self, item_id: str, name: str, namespace: str | None, call_id: str | None = None) -> None:
        """`call_id`: the id of a call that was made before."""
        super().__init__(item_id)
        self._at = {"item_id": item_id}
        self._call = {"call_id": call_id or new_id("call_"), "name": name}
        if namespace is not None:
            self._call["namespace"] = namespace

    def add(self, arguments: str, padded: Mapping[str, Any]) -> ItemEvents:
        self._texts.append(arguments)
        return [("response.function_call_arguments.delta", {**self._at, "delta": arguments, **padded})]

    def done(self, status: str) -> PlainItem:
        return {**self._begun(), "status": status, "arguments": self.text}

    def _begun(self) -> PlainItem:
        return {"type": "function_call", "id": self.id, "status": "in_progress", **self._call, "arguments": ""}

    def _ended(self) -> ItemEvents:
        done = {**self._at, "name": self._call["name"], "arguments": self.text}
        return [("response.function_call_arguments.done", done)]


class OpenReasoning(OpenItem):
    """The model's reasoning."""

    def __init__(self, item_id: str) -> None:
        super().__init__(item_id)
        self._at = {"item_id": item_id, "content_index": 0}

    def opened(self) -> ItemEvents:
        return [*super().opened(), ("response.content_part.added", {**self._at, "part": self._part("")})]

    def add(self, text: str, padded: Mapping[str, Any]) -> ItemEvents:
        self._texts.append(text)
        return [("response.reasoning_text.delta", {**self._at, "delta": text, **padded})]

    def done(self, status: str) -> PlainItem:
        return {**self._begun(), "status": status, "content": [self._part(self.text)]}

    def _begun(self) -> PlainItem:
        return {"type": "reasoning", "id": self.id, "status": "in_progress", "summary": [], "content": []}

    def _ended(self) -> ItemEvents:
        text = self.text
        return [
            ("response.reasoning_text.done", {**self._at, "text": text}),
            ("response.content_part.done", {**self._at, "part": self._part(text)}),
        ]

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


def logprob_object(token: TokenLogprob) -> dict[str, Any]:
    return {**_own(token), "top_logprobs": [_own(top) for top in token.top]}


def _own(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token_text(token), "logprob": token.logprob, "bytes": list(token.bytes)}

"""The events of a streamed response. The plain response is the response object in the last of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, assert_never

from tokka.core import (
    Accepted,
    ChoiceDone,
    Embedding,
    Event,
    Finished,
    FinishReason,
    PromptEcho,
    PromptLogprobs,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from tokka.errors import TokkaError
from tokka.protocol import sse
from tokka.protocol.chunks import Encoder, Fold
from tokka.protocol.common import now_s, padding
from tokka.protocol.folding import Piece, dumps
from tokka.protocol.responses.errors import error_fields
from tokka.protocol.responses.open_items import OpenCall, OpenItem, OpenMessage, OpenReasoning, logprob_object
from tokka.protocol.responses.resource import Progress, ResponseForm, response_object


class ResponsesEncoder(Encoder):
    """Encode events as the events of one response, which has one item at a time in progress."""

    def __init__(self, form: ResponseForm, response_id: str, fingerprint: str) -> None:
        self.form = form
        self._progress = Progress(response_id, now_s(), is_stored=form.is_stored)
        self._output = self._progress.output
        self._sequence = 0
        self._item: OpenItem | None = None
        self._finish: FinishReason = "stop"
        self._is_queued = False

    @property
    def is_stored(self) -> bool:
        """Whether the response says that it is stored."""
        return self._progress.is_stored

    @is_stored.setter
    def is_stored(self, value: bool) -> None:
        self._progress.is_stored = value

    def feed(self, event: Event) -> list[dict[str, Any]]:
        return list(self._feed(event))

    def encode(self, event: Event) -> Iterable[bytes]:
        if isinstance(event, TextDelta) and isinstance(self._item, OpenMessage) and self._item.is_plain:
            return self._text_events(self._item, event.text)
        return map(_sent, self._feed(event))

    def fail(self, error: TokkaError) -> Iterable[bytes]:
        """Return an `error` event, then `response.failed`."""
        yield _sent(self._event("error", error_fields(error)))
        self._break_off()
        self._progress.status = "failed"
        self._progress.is_stored &= self.form.background
        self._progress.error = {"code": error.code or error.type, "message": error.message}
        yield _sent(self._event("response.failed", {"response": self.response()}))

    def queue(self) -> Iterable[bytes]:
        """Return the events of a response that runs in the background, before it begins."""
        self._is_queued = True
        self._progress.status = "queued"
        yield _sent(self._event("response.created", {"response": self.response()}))
        yield _sent(self._event("response.queued", {"response": self.response()}))

    def cancel(self) -> Iterable[bytes]:
        """Return the event that ends a cancelled response."""
        self._break_off()
        self._progress.status = "cancelled"
        yield _sent(self._event("response.incomplete", {"response": self.response()}))

    def _break_off(self) -> None:
        """End the item in progress."""
        if self._item is not None:
            self._output.append(self._item.done("incomplete"))
            self._item = None

    def fold(self) -> Fold:
        return ResponsesFold()

    def _feed(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case TextDelta():
                yield from self._add_text(event)
            case ReasoningDelta():
                item = self._item
                if not isinstance(item, OpenReasoning):
                    item = OpenReasoning(self._new_id("rs_"))
                    yield from self._open(item)
                yield from self._all(item.add(event.text, self._padding(event.text)))
            case ToolCallDelta():
                yield from self._add_call(event)
            case ChoiceDone():
                yield from self._end(event.finish_reason)
            case Accepted():
                self._progress.status = "in_progress"
                response = self.response()
                if not self._is_queued:
                    yield self._event("response.created", {"response": response})
                yield self._event("response.in_progress", {"response": response})
            case Finished(usage):
                response = self.finished(usage)
                yield self._event(f"response.{self._progress.status}", {"response": response})
            case PromptLogprobs() | PromptEcho() | Embedding():
                pass
            case _:
                assert_never(event)

    def _add_text(self, event: TextDelta) -> Iterator[dict[str, Any]]:
        """Add text to the message. Tokens without text belong to reasoning or to a call, unless a message is open."""
        item = self._item
        if not isinstance(item, OpenMessage):
            if not event.text:
                return
            item = OpenMessage(self._new_id("msg_"), self._next_place)
            item.is_plain = not (self.form.has_logprobs or self.form.obfuscates)
            yield from self._open(item)
        if event.text or event.logprobs:
            logprobs = [logprob_object(token) for token in event.logprobs or ()] if self.form.has_logprobs else []
            yield from self._all(item.add(event.text, logprobs, self._padding(event.text)))

    def _text_events(self, item: OpenMessage, text: str) -> tuple[bytes, ...]:
        """Return the events of a text delta as bytes, because nearly all events of a stream are these."""
        if not text:
            return ()
        data = item.encoded(self._sequence, text)
        self._sequence += 1
        return (data,)

    def _add_call(self, event: ToolCallDelta) -> Iterator[dict[str, Any]]:
        item = self._item
        if event.name is not None or not isinstance(item, OpenCall):
            name = event.name or ""
            namespace, local = self.form.namespaces.get(name, (None, name))
            item = OpenCall(self._new_id("fc_"), local, namespace)
            yield from self._open(item)
        if event.arguments:
            yield from self._all(item.add(event.arguments, self._padding(event.arguments)))

    def _open(self, item: OpenItem) -> Iterator[dict[str, Any]]:
        yield from self._close("completed")
        self._item = item
        yield from self._all(item.opened())

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        if self._item is not None:
            yield from self._all(self._item.closed(status))
            self._output.append(self._item.done(status))
            self._item = None

    def _end(self, finish: FinishReason) -> Iterator[dict[str, Any]]:
        self._finish = finish
        if finish != "length" and self._item is None and not self._output:
            # A model that says nothing sends an empty message, as in chat.
            yield from self._open(OpenMessage(self._new_id("msg_"), self._next_place))
        yield from self._close("incomplete" if finish == "length" else "completed")

    def finished(self, usage: Usage) -> dict[str, Any]:
        """Return the whole response, as the last event will hold it. Call it after the events of the choice."""
        progress = self._progress
        progress.usage = usage
        if self._finish == "length":
            progress.status, progress.incomplete_reason = "incomplete", "max_output_tokens"
        else:
            progress.status, progress.completed_at = "completed", progress.completed_at or now_s()
        return self.response()

    def response(self) -> dict[str, Any]:
        """Return the response as it is now, with its complete items."""
        return response_object(self.form, self._progress)

    def _event(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event

    def _all(self, events: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        """Return the events of the item in progress."""
        for kind, fields in events:
            yield self._event(kind, {"output_index": len(self._output), **fields})

    def _new_id(self, prefix: str) -> str:
        """Return the id of the next item. It holds the response's own, so that a reference to it can be found."""
        return f"{prefix}{self._progress.id.partition('_')[2]}{self._next_place:04x}"

    @property
    def _next_place(self) -> int:
        """The place of the next item, after the one in progress."""
        return len(self._output) + (self._item is not None)

    def _padding(self, text: str) -> dict[str, Any]:
        return {"obfuscation": padding(text)} if self.form.obfuscates else {}


class ResponsesFold(Fold):
    """Fold the events of a stream: the plain response is in the last one."""

    def __init__(self) -> None:
        self._response: Mapping[str, Any] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        self._response = chunk.get("response", self._response)

    def pieces(self) -> list[Piece]:
        return [dumps(self._response)]


def _sent(event: dict[str, Any]) -> bytes:
    return sse.event(event, event["type"])

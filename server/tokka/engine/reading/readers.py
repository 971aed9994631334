"""Turns the text events of a choice into reasoning, tool call and text events, for requests that need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tokka.core import ChoiceDone, Event, ReasoningDelta, TextDelta, ToolCallDelta, Tools
from tokka.engine.reading.call_reader import CallReader
from tokka.engine.reading.forms import ARRAY, Form
from tokka.engine.reading.harmony import HarmonyReader
from tokka.engine.reading.pieces import CallPiece, CallSource, ParseWhole, Piece, Thought
from tokka.engine.reading.thinking import ThoughtMarks, ThoughtReader

# Counts the reasoning tokens. Takes a choice's token ids, its reasoning, and whether it ended inside its reasoning.
CountThoughts = Callable[[list[int], str, bool], int]


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """How to read the choices of one request. None turns a part off."""

    tools: Tools | None = None
    form: Form | None = None
    whole: ParseWhole | None = None
    thoughts: ThoughtMarks | None = None
    # The Harmony format labels every part, so neither form nor thoughts are needed.
    is_harmony: bool = False
    count_thoughts: CountThoughts | None = None


class Readers:
    """The readers of a request's choices."""

    def __init__(self, reading: ReadingPlan, end: Callable[[int], None] = lambda _: None) -> None:
        """Create the readers. They call `end` for a choice with all allowed calls made, and skip its later events."""
        self._reading = reading
        self._end = end
        self._readers: dict[int, ChoiceReader] = {}
        self._ended: set[int] = set()

    @property
    def reasoning_tokens(self) -> int:
        """The reasoning tokens of all choices, once they have ended. Blocks: may tokenise long texts."""
        return sum(reader.reasoning_tokens for reader in self._readers.values())

    def read(self, event: Event) -> Iterator[Event]:
        """Yield the events that replace an engine event."""
        match event:
            case TextDelta() | ChoiceDone() if event.index in self._ended:
                pass
            case TextDelta():
                reader = self._reader(event.index)
                yield from reader.read(event)
                # design 7.1
                if reader.has_all_calls:
                    self._ended.add(event.index)
                    self._end(event.index)
                    yield from reader.end(ChoiceDone(event.index, "stop"), early=True)
            case ChoiceDone():
                yield from self._reader(event.index).end(event)
            case _:
                yield event

    def _reader(self, index: int) -> ChoiceReader:
        if (reader := self._readers.get(index)) is None:
            reader = self._readers[index] = ChoiceReader(index, self._reading)
        return reader


class ChoiceReader:
    """Reads one choice. A step's tokens and logprobs stay with its TextDelta, even if its text moves elsewhere."""

    def __init__(self, index: int, reading: ReadingPlan) -> None:
        self._index = index
        self._reading = reading
        self._thoughts = ThoughtReader(reading.thoughts) if reading.thoughts else None
        self._thought: list[str] = []
        self._token_ids: list[int] = []
        self._calls = _call_reader(reading)
        # Whether the choice ended inside its reasoning.
        self._is_open = False

    @property
    def reasoning_tokens(self) -> int:
        if not self._reading.count_thoughts or not self._thought:
            return 0
        return self._reading.count_thoughts(self._token_ids, "".join(self._thought), self._is_open)

    @property
    def has_all_calls(self) -> bool:
        return self._calls.has_all_calls

    def read(self, delta: TextDelta) -> Iterator[Event]:
        text = ""
        if self._reading.count_thoughts:
            self._token_ids += delta.token_ids
        for event in self._in_order(self._events(delta.text)):
            if isinstance(event, str):
                text = event
            else:
                yield event
        held = (self._thoughts.held if self._thoughts else "") + self._calls.held + delta.held
        yield replace(delta, text=text, held=held)

    def end(self, done: ChoiceDone, *, early: bool = False) -> Iterator[Event]:
        """Yield the remaining events. `early`: all allowed calls are made, although the model had not finished."""
        is_cut = done.finish_reason == "length"
        for event in self._in_order(self._last_events(cut_short=is_cut or early)):
            yield TextDelta(self._index, event, ()) if isinstance(event, str) else event
        self._is_open = self._thoughts is not None and not self._thoughts.is_over
        tools = self._reading.tools
        # As in OpenAI's API, a call of a named function keeps the finish reason, since the model did not choose it.
        has_called = self._calls.count and tools is not None and tools.choice != "named"
        # design 7.2
        yield replace(done, finish_reason="tool_calls") if has_called and not is_cut else done

    def _in_order(self, events: Iterator[Event | str]) -> Iterator[Event | str]:
        """Yield the events of a step, each after the text before it. The text at the end is the last, as a string."""
        text = ""
        for event in events:
            if isinstance(event, str):
                text += event
                continue
            if text:
                # The step's tokens come with the delta at its end.
                yield TextDelta(self._index, text, ())
                text = ""
            yield event
        if text:
            yield text

    def _events(self, text: str) -> Iterator[Event | str]:
        if self._thoughts and not self._thoughts.is_over:
            thought, text = self._thoughts.feed(text)
            yield from self._thinks(thought)
        if text:
            yield from map(self._event, self._calls.feed(text))

    def _last_events(self, *, cut_short: bool) -> Iterator[Event | str]:
        if self._thoughts and not self._thoughts.is_over:
            thought, text = self._thoughts.finish()
            yield from self._thinks(thought)
            yield from map(self._event, self._calls.feed(text))
        yield from map(self._event, self._calls.finish(cut_short=cut_short))

    def _thinks(self, thought: str) -> Iterator[Event]:
        if thought:
            self._thought.append(thought)
            yield ReasoningDelta(self._index, thought)

    def _event(self, piece: Piece) -> Event | str:
        if isinstance(piece, str):
            return piece
        if isinstance(piece, Thought):
            self._thought.append(piece.text)
            return ReasoningDelta(self._index, piece.text)
        return ToolCallDelta(self._index, piece.number, piece.arguments, piece.name)


class _PlainText:
    """A choice without calls: all of it is text."""

    held = ""
    has_all_calls = False
    count = 0

    def feed(self, text: str) -> list[Piece]:
        return [text]

    def finish(self, *, cut_short: bool) -> list[Piece]:
        return []


class _NamedCall:
    """A choice that is one call of a named function: all of its text is the arguments."""

    held = ""
    has_all_calls = False
    count = 1

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str) -> list[Piece]:
        name, self._name = self._name, None
        return [CallPiece(0, text, name)]

    def finish(self, *, cut_short: bool) -> list[Piece]:
        return self.feed("") if self._name else []


def _call_reader(reading: ReadingPlan) -> CallSource:
    tools = reading.tools
    # design 1.4
    if reading.is_harmony:
        return HarmonyReader(tools)
    # design 1.7
    if tools is None:
        return _PlainText()
    # design 1.8
    if tools.name is not None:
        return _NamedCall(tools.name)
    # design 1.9
    if tools.choice == "required":
        return CallReader(ARRAY, tools)
    # design 1.7, 1.10
    return _PlainText() if reading.form is None else CallReader(reading.form, tools, reading.whole)

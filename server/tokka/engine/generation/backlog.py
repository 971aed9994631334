"""The events of a request that wait because its sink is full."""

from __future__ import annotations

from collections.abc import Iterator

from tokka.core import ChoiceDone, Embedding, Event, ReasoningDelta, TextDelta, ToolCallDelta
from tokka.errors import SlowReader

# Maximum waiting units per request, about 40 bytes each. A token counts 1 unit; its logprob and each alternative count
# 8; an event of reasoning or of a tool call also counts 8. 100 choices fill it in half a minute if the client reads
# nothing.
MOST_UNITS = 1_000_000
_LOGPROB_UNITS = 8

# An event, or the parts of a long one, which are made while they are given.
Waiting = Event | Iterator[Event]


class Backlog:
    """Keeps waiting events in order, and merges the deltas of a choice into one. A slow client costs only the text."""

    __slots__ = ("_deltas", "_events", "_units")

    def __init__(self) -> None:
        self._events: list[Waiting] = []
        self._units = 0
        # The waiting delta of each choice, to which later text is added.
        self._deltas: dict[int, TextDelta] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def add_parts(self, parts: Iterator[Event]) -> None:
        self._events.append(parts)

    def add(self, delta: TextDelta, done: ChoiceDone | None) -> None:
        """Add new text of a choice and, with `done`, its end. The delta now belongs to the backlog.

        Raises SlowReader if more waits than MOST_UNITS.
        """
        if (earlier := self._deltas.get(delta.index)) is None:
            self._deltas[delta.index] = delta
            self._events.append(delta)
        else:
            earlier.add(delta)
        if done is not None:
            self._events.append(done)
        self._units += len(delta.token_ids)
        if delta.logprobs:
            self._units += sum(_LOGPROB_UNITS * (1 + len(token.top)) for token in delta.logprobs)
        self._check()

    def add_read(self, event: ReasoningDelta | ToolCallDelta | ChoiceDone | Embedding) -> None:
        """Add a vector, or an event that was read out of a choice's text. Later text of the choice stays behind it.

        Raises SlowReader as `add` does.
        """
        if not isinstance(event, Embedding):
            self._deltas.pop(event.index, None)
        self._events.append(event)
        self._units += _LOGPROB_UNITS
        self._check()

    def _check(self) -> None:
        if self._units > MOST_UNITS:
            raise SlowReader(
                "The server ended the stream because the client read it too slowly. Read faster or ask for fewer"
                " choices."
            )

    def take(self) -> list[Waiting]:
        """Return and remove everything that waits."""
        events, self._events, self._units = self._events, [], 0
        self._deltas.clear()
        return events

"""The events of a response that runs in the background, numbered from 0. Older ones are compressed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokka.accounts.compression import compressed, inflated
from tokka.store.rows import EventChunk

_END = b"\n\n"


class EventLog:
    """Server-sent events in order. Each ends with an empty line."""

    def __init__(self, chunks: Iterable[EventChunk] = ()) -> None:
        self._chunks = list(chunks)
        # New chunks, until the owner has stored them.
        self.unsaved: list[EventChunk] = []
        # Events after the chunks.
        self._tail: list[bytes] = []
        self._first = 0
        if self._chunks:
            self._first = self._chunks[-1].first + len(_events_of(self._chunks[-1]))

    def __len__(self) -> int:
        return self._first + len(self._tail)

    def extend(self, events: Iterable[bytes]) -> None:
        self._tail.extend(events)

    def seal(self) -> None:
        """Compress the events after the last chunk as a new, unsaved chunk, if there are any."""
        if not self._tail:
            return
        data = b"".join(self._tail)
        chunk = EventChunk(self._first, compressed(data), len(data))
        self._chunks.append(chunk)
        self._first += len(self._tail)
        self._tail = []
        self.unsaved.append(chunk)

    def after(self, number: int) -> Iterator[bytes]:
        """Yield the events after the one with this number."""
        for place, chunk in enumerate(self._chunks):
            next_first = self._chunks[place + 1].first if place + 1 < len(self._chunks) else self._first
            if next_first > number + 1:
                yield from _events_of(chunk)[max(0, number + 1 - chunk.first) :]
        yield from self._tail[max(0, number + 1 - self._first) :]


def _events_of(chunk: EventChunk) -> list[bytes]:
    return [event + _END for event in inflated(chunk.data, chunk.size).split(_END)[:-1]]

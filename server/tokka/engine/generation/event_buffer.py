"""Passes events from an engine's loop to the one task that reads them."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

from tokka.core import ChoiceDone, Event, TextDelta
from tokka.errors import SlowReader

# Minimum seconds between wake-ups of a reader that wants only the whole answer.
GATHER_S = 0.25
# Maximum unread units per reader, about 40 bytes each. A token counts 1 unit; its logprob and each alternative count 8.
# 100 choices fill it in half a minute if the client reads nothing.
MOST_UNREAD = 1_000_000
_LOGPROB_WEIGHT = 8


@dataclass(frozen=True, slots=True)
class EchoReady:
    """A prompt's logprobs have arrived; the reader turns them into events part by part."""

    prompt_index: int


class EventBuffer:
    """Buffers a request's events until its task reads them. Merges the unread deltas of a choice into one.

    A slow reader therefore costs only the text, and tokens that are ready together travel together. `batches`: wake
    the reader for the first token, for an end, and every GATHER_S seconds, instead of for each token.
    """

    __slots__ = ("_batches", "_deltas", "_error", "_events", "_unread", "_waiter", "_woken_s")

    def __init__(self, *, batches: bool = False) -> None:
        self._events: list[Event | EchoReady] = []
        self._unread = 0
        # The unread delta of each choice, to which later text is added.
        self._deltas: dict[int, TextDelta] = {}
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._batches = batches
        self._woken_s = -math.inf

    def echo(self, event: EchoReady) -> None:
        self._events.append(event)

    def put(self, delta: TextDelta, done: ChoiceDone | None = None) -> None:
        """Add new text of a choice and, with `done`, its end. The buffer owns the delta from now on.

        After an error it keeps nothing: the reader may never come, and the engine goes on until it does.
        """
        if self._error is not None:
            return
        if (earlier := self._deltas.get(delta.index)) is None:
            self._deltas[delta.index] = delta
            self._events.append(delta)
        else:
            earlier.add(delta)
        self._unread += len(delta.token_ids)
        if delta.logprobs:
            self._unread += sum(_LOGPROB_WEIGHT * (1 + len(token.top)) for token in delta.logprobs)
        # vllm/design 4.5
        if self._unread > MOST_UNREAD:
            self.fail(
                SlowReader(
                    "The server ended the stream because the client read it too slowly. Read faster or ask for fewer"
                    " choices."
                )
            )
        if done is not None:
            self._events.append(done)
        # vllm/design 3.9
        if done is not None or not self.reader_can_wait():
            self._wake()

    def reader_can_wait(self) -> bool:
        """Return whether the reader need not be woken for a token that arrives now."""
        return self._batches and time.monotonic() - self._woken_s < GATHER_S

    def fail(self, error: Exception) -> None:
        """End the buffer: the reader gets this error after the buffered events."""
        self._error = error
        self._wake()

    async def get(self) -> list[Event | EchoReady]:
        """Return all buffered events; wait for at least one. Raises the error that `fail` got."""
        if not self._events and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._events and self._error is not None:
            raise self._error
        events, self._events, self._unread = self._events, [], 0
        self._deltas.clear()
        return events

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            if self._batches:
                self._woken_s = time.monotonic()

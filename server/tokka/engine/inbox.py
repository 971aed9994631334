"""Events on their way from an engine's loop to the one task that reads them."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

from tokka.core import ChoiceDone, Event, TextDelta
from tokka.errors import SlowReader

# How long tokens gather for a reader that wants the whole answer only.
GATHER_S = 0.25
# What may wait for one reader: a token counts 1, its logprob and each alternative 8, about 40 bytes each. As much as a
# client that reads nothing is given in half a minute by 100 choices.
MOST_UNREAD = 1_000_000
_LOGPROB_WEIGHT = 8


@dataclass(frozen=True, slots=True)
class EchoReady:
    """A prompt's logprobs have come: the reader makes events of them, part by part."""

    prompt_index: int


class Inbox:
    """Keeps what a request was given until it is read. While nobody reads, the deltas of a choice become one.

    So a slow reader costs a text and no more, and tokens that are ready together travel together. `gathers`: wake the
    reader for the first token, for an end, and now and then, instead of for each token.
    """

    __slots__ = ("_deltas", "_error", "_events", "_gathers", "_unread", "_waiter", "_woken_s")

    def __init__(self, *, gathers: bool = False) -> None:
        self._events: list[Event | EchoReady] = []
        self._unread = 0
        # Those of the events that further text is added to, by choice.
        self._deltas: dict[int, TextDelta] = {}
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._gathers = gathers
        self._woken_s = -math.inf

    def echo(self, event: EchoReady) -> None:
        self._events.append(event)

    def put(self, delta: TextDelta, done: ChoiceDone | None = None) -> None:
        """Add what a choice was given. The inbox owns the delta from now on."""
        if (earlier := self._deltas.get(delta.index)) is None:
            self._deltas[delta.index] = delta
            self._events.append(delta)
        else:
            earlier.add(delta)
        self._unread += len(delta.token_ids)
        if delta.logprobs:
            self._unread += sum(_LOGPROB_WEIGHT * (1 + len(token.top)) for token in delta.logprobs)
        if self._unread > MOST_UNREAD:
            self.fail(SlowReader("The stream was ended: it was read too slowly for the server to keep the rest."))
        if done is not None:
            self._events.append(done)
        if done is not None or not self.waits():
            self._wake()

    def waits(self) -> bool:
        """Tell whether the reader need not hear of a token that comes now."""
        return self._gathers and time.monotonic() - self._woken_s < GATHER_S

    def fail(self, error: Exception) -> None:
        """End it: the reader gets this error behind what is there."""
        self._error = error
        self._wake()

    async def get(self) -> list[Event | EchoReady]:
        """Return what has come, at least one event. Raises what `fail` was told."""
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
            if self._gathers:
                self._woken_s = time.monotonic()

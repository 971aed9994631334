"""Counts the tokens of a running request on their way to the client."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator

from tokka.admission.controller import Slot
from tokka.core import ChoiceDone, Embedding, Event, Outcome, TextDelta
from tokka.engine.base import Sink


class Meter:
    """A sink that counts events and passes them on.

    `on_token`: called with the time of each event with tokens or a vector, as long as it is set.
    """

    def __init__(self, sink: Sink, slot: Slot, choices: int) -> None:
        self._sink = sink
        self._slot = slot
        # The last text of each choice that has not ended.
        self._unfinished: dict[int, TextDelta | None] = dict.fromkeys(range(choices))
        self.outcome: Outcome = "stop"
        self.on_token: Callable[[float], None] | None = None

    def take(self, event: Event) -> bool:
        self._count(event)
        return self._sink.take(event)

    async def give(self, event: Event) -> None:
        self._count(event)
        await self._sink.give(event)

    def cut_short(self) -> Iterator[Event]:
        """Yield the held-back text of each unfinished choice, then its end, for a request at its deadline."""
        for index, last in sorted(self._unfinished.items(), key=lambda entry: entry[0]):
            if last is not None and (last.held or last.held_logprobs):
                yield TextDelta(index, last.held, (), last.held_logprobs or None)
            yield ChoiceDone(index, "length", "timeout")

    def _count(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            now_s = time.monotonic()
            self._slot.produced(len(event.token_ids), now_s)
            self._unfinished[event.index] = event
            if self.on_token is not None:
                self.on_token(now_s)
        elif isinstance(event, ChoiceDone):
            self._unfinished.pop(event.index, None)
            # Several choices: `length` ranks first, then `tool_calls`, then `stop`.
            if event.finish_reason == "length" or self.outcome == "stop":
                self.outcome = event.finish_reason
        elif isinstance(event, Embedding) and self.on_token is not None:
            self.on_token(time.monotonic())


class RepeatMeter(Meter):
    """A meter that remembers the tokens sent, so that another replica can go on."""

    def __init__(self, sink: Sink, slot: Slot, choices: int, *, keeps_tokens: bool) -> None:
        super().__init__(sink, slot, choices)
        self.has_passed = False
        # The tokens so far; None if nobody can go on after them.
        self.token_ids = array("I") if keeps_tokens else None

    def _count(self, event: Event) -> None:
        self.has_passed = True
        if isinstance(event, TextDelta) and self.token_ids is not None:
            self.token_ids.extend(event.token_ids)
        super()._count(event)

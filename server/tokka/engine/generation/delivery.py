"""Passes a request's events from the engine's step to its sink, without waking the request's task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from tokka.core import ChoiceDone, Embedding, Event, ReasoningDelta, TextDelta, ToolCallDelta
from tokka.engine.base import Sink
from tokka.engine.generation.backlog import Backlog
from tokka.engine.generation.slices import Slices
from tokka.errors import SlowReader

# Replaces an event by others.
Read = Callable[[Event], Iterable[Event]]


class Delivery:
    """The way of one request's events to its sink.

    Direct: a step passes its events to the sink at once, and the request's task sleeps. Held: the sink has no room, or
    the prompt's own events are on their way; later events wait in the backlog, and the task gives them to the sink as
    it makes room. Over: every choice has ended, or the request has failed or was cancelled; later events are dropped.
    `read`: for tool calls and reasoning.
    """

    __slots__ = ("_backlog", "_error", "_has_room", "_is_held", "_is_over", "_left", "_read", "_sink", "_waiter")

    def __init__(self, sink: Sink, choices: int, read: Read | None = None) -> None:
        self._sink = sink
        self._left = choices
        self._read = read
        self._backlog = Backlog()
        # The sink's last answer.
        self._has_room = True
        self._is_held = self._is_over = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: TextDelta, done: ChoiceDone | None = None) -> None:
        """Pass on new text of a choice and, with `done`, its end. The delta belongs to the delivery from now on."""
        if self._is_over or self._error is not None:
            return
        if self._is_held or not self._has_room:
            try:
                self._backlog.add(delta, done)
            except SlowReader as error:
                self.fail(error)
            self._hold()
        elif self._read is not None:
            self._take_read(delta, done, self._read)
        else:
            self._has_room = self._sink.take(delta)
            if done is not None:
                self._has_room = self._sink.take(done)
                self._end_choice()

    def put_read(self, event: ReasoningDelta | ToolCallDelta | ChoiceDone | Embedding) -> None:
        """Pass on an event that was read out of a choice's text elsewhere, or a choice's end without text.

        A vector is all that its input has, so it counts as the end of a choice.
        """
        if self._is_over or self._error is not None:
            return
        if self._is_held or not self._has_room:
            try:
                self._backlog.add_read(event)
            except SlowReader as error:
                self.fail(error)
            self._hold()
        else:
            self._has_room = self._sink.take(event)
            if isinstance(event, ChoiceDone | Embedding):
                self._end_choice()

    def put_parts(self, parts: Iterator[Event]) -> None:
        """Pass on the parts of a prompt's own events, which may be long. Events of its choices wait until then."""
        self._backlog.add_parts(parts)
        self._hold()

    def fail(self, error: Exception) -> None:
        """End the delivery. `run` raises the error after it has given the events before it."""
        if self._error is None:
            self._error = error
            self._wake()

    async def run(self) -> None:
        """Return when every choice has ended. Raises the error that `fail` got."""
        try:
            while True:
                await self._give_backlog()
                if not self._left:
                    return
                if self._error is not None:
                    raise self._error
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
        finally:
            self._is_over = True

    async def _give_backlog(self) -> None:
        slices = Slices()
        while self._backlog:
            for waiting in self._backlog.take():
                for event in waiting if isinstance(waiting, Iterator) else (waiting,):
                    await self._give(event)
                    await slices.rest()
        self._is_held, self._has_room = False, True

    def _take_read(self, delta: TextDelta, done: ChoiceDone | None, read: Read) -> None:
        for event in (delta, done) if done is not None else (delta,):
            for replacing in read(event):
                self._has_room = self._sink.take(replacing)
                if isinstance(replacing, ChoiceDone):
                    self._end_choice()

    async def _give(self, event: Event) -> None:
        for replacing in (event,) if self._read is None else self._read(event):
            await self._sink.give(replacing)
            if isinstance(replacing, ChoiceDone | Embedding):
                self._end_choice()

    def _end_choice(self) -> None:
        self._left -= 1
        if not self._left:
            self._wake()

    def _hold(self) -> None:
        self._is_held = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

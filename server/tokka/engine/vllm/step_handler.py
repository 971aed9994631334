"""Processes the engine's messages in the turn of the event loop in which they arrive."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from tokka.engine.generation.slices import SLICE_S
from tokka.engine.vllm.stats import StepStats
from tokka.engine.vllm.step_processor import StepProcessor
from tokka.engine.vllm.step_socket import StepSocket

# Sequences processed between two checks of the time that a step has taken.
_PART = 32


class Client(Protocol):
    """What the handler needs of the engine's client."""

    stats: StepStats
    steps: StepProcessor

    def decode(self, frames: list[Any]) -> Any: ...
    def answer(self, output: Any) -> None: ...
    def note_finished(self, ids: set[str]) -> None: ...
    def abort(self, ids: list[str]) -> None: ...
    def fail(self, error: Exception) -> None: ...


class StepHandler:
    """Reads messages and processes steps, one after the other.

    A step with more than a slice of work (a thousand sequences, alternatives for each token) continues in later turns
    of the loop. Messages behind it wait in the socket.
    """

    def __init__(self, socket: StepSocket, client: Client) -> None:
        self._socket = socket
        self._client = client
        # The step in progress.
        self._step: _Step | None = None
        self._is_scheduled = False
        self.is_closed = False

    def listen(self) -> None:
        self._socket.watch(self._on_message)

    def close(self) -> None:
        """Process no more messages."""
        self.is_closed = True
        self._socket.stop()

    def _on_message(self) -> None:
        if not self._is_scheduled:
            self._work()

    def _work(self) -> None:
        """Process messages for one slice of time."""
        self._is_scheduled = False
        until_s = time.monotonic() + SLICE_S
        try:
            while not self.is_closed and (step := self._step or self._next()) is not None:
                stopped, is_done = step.next_part()
                self._step = None if is_done else step
                # design 4.1
                self._client.abort(stopped)
                # design 3.3
                if time.monotonic() > until_s:
                    self._is_scheduled = True
                    asyncio.get_running_loop().call_soon(self._work)
                    return
        except Exception as error:
            self._step = None
            self._client.fail(error)

    def _next(self) -> _Step | None:
        """Return the next step, or None if no more messages wait."""
        while (frames := self._socket.receive()) is not None:
            # design 3.2
            message = self._client.decode(frames)
            if message.utility_output is not None:
                self._client.answer(message.utility_output)
                continue
            if message.finished_requests:
                self._client.note_finished(message.finished_requests)
            if message.outputs or message.scheduler_stats:
                return _Step(message, self._client)
        return None


class _Step:
    """One step of the engine, processed part by part."""

    __slots__ = ("_at", "_client", "_preemptions", "_step", "_tokens")

    def __init__(self, step: Any, client: Client) -> None:
        self._step = step
        self._client = client
        self._at = 0
        self._tokens = 0
        self._preemptions = 0

    def next_part(self) -> tuple[list[str], bool]:
        """Process the next part. Return the requests that a stop string ended, and whether this was the last part."""
        step, stats = self._step, self._client.stats
        part = step.outputs[self._at : self._at + _PART] if len(step.outputs) > _PART else step.outputs
        stopped: list[str] = []
        if part:
            processed = self._client.steps.process(part, step.timestamp, stats.iteration(step.engine_index))
            stopped = processed.stopped
            self._tokens += processed.tokens
            self._preemptions += processed.preemptions
        self._at += _PART
        is_done = self._at >= len(step.outputs)
        if is_done:
            # design 3.10
            stats.times.add(step, time.monotonic())
            tokens = self._tokens if step.outputs else None
            stats.add(step.engine_index, step.scheduler_stats, tokens, self._preemptions)
        return stopped, is_done

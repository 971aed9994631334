"""Replaces the queue in which vLLM's client leaves each step for a second task. Here a step is processed at once."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from typing import Any

from vllm.v1.metrics.stats import IterationStats

from tokka.engine.generation.slices import SLICE_S
from tokka.engine.vllm.step_processor import StepProcessor

# Sequences processed between two checks of the time that a step has taken.
_PART = 32


class StepHandler(asyncio.Queue[Exception]):
    """Replaces the queue between two tasks of vLLM, which costs a turn of the event loop and a task switch per step.

    A step with more than a slice of work (a thousand sequences, alternatives for each token) continues in later turns
    of the loop. Errors are still queued: vLLM's second task now waits only for errors, and ends the generations.
    """

    def __init__(self, core: Any, steps: StepProcessor) -> None:
        super().__init__()
        # The client owns this queue: a cycle would keep a dead engine alive.
        self._core = weakref.ref(core)
        self._steps = steps
        self._waiting: deque[_Step] = deque()
        self._aborts: set[asyncio.Task[None]] = set()

    def put_nowait(self, item: Any) -> None:
        # design 3.2
        if isinstance(item, Exception):
            super().put_nowait(item)
            return
        self._waiting.append(_Step(item, self._steps))
        if len(self._waiting) == 1:
            self._work()

    def _work(self) -> None:
        """Process steps in order for one slice of time."""
        until_s = time.thread_time() + SLICE_S
        while self._waiting:
            try:
                stopped, is_done = self._waiting[0].next_part()
            except Exception as error:
                super().put_nowait(error)
                is_done, stopped = True, []
            self._abort(stopped)
            if is_done:
                self._waiting.popleft()
            # design 3.3
            if self._waiting and time.thread_time() > until_s:
                asyncio.get_running_loop().call_soon(self._work)
                return

    def _abort(self, stopped: list[str]) -> None:
        if stopped and (core := self._core()) is not None:
            abort = asyncio.ensure_future(core.abort_requests_async(stopped))
            self._aborts.add(abort)
            abort.add_done_callback(self._aborts.discard)


class _Step:
    """One step of the engine, processed part by part."""

    def __init__(self, step: Any, steps: StepProcessor) -> None:
        self._step = step
        self._steps = steps
        self._at = 0
        self._iteration = IterationStats() if step.outputs and steps.log_stats else None

    def next_part(self) -> tuple[list[str], bool]:
        """Process the next part. Return the requests that a stop string ended, and whether this was the last part."""
        step = self._step
        part = step.outputs[self._at : self._at + _PART] if len(step.outputs) > _PART else step.outputs
        processed = self._steps.process_outputs(part, step.timestamp, self._iteration)
        self._at += _PART
        is_done = self._at >= len(step.outputs)
        if is_done:
            # design 3.10
            self._steps.stats.times.add(step)
            self._steps.update_scheduler_stats(step.scheduler_stats)
            self._steps.stats.add(step.engine_index, step.scheduler_stats, self._iteration)
        return processed.reqs_to_abort, is_done

"""Where vLLM's client leaves a step of the engine for a second task to fetch: here it is dealt with at once."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from vllm.v1.metrics.stats import IterationStats

from tokka.engine.vllm.steps import StepOutputs


class StepQueue(asyncio.Queue[Exception]):
    """Stands in for the queue between two tasks of vLLM, which costs a turn of the loop and a switch for each step.

    Errors are queued as before: vLLM's second task waits for nothing else, and ends the generations.
    """

    def __init__(self, core: Any, steps: StepOutputs) -> None:
        super().__init__()
        # The client holds this queue: a cycle would keep a dead engine.
        self._core = weakref.ref(core)
        self._steps = steps
        self._aborts: set[asyncio.Task[None]] = set()

    def put_nowait(self, item: Any) -> None:
        if isinstance(item, Exception):
            super().put_nowait(item)
            return
        try:
            self._take(item)
        except Exception as error:
            super().put_nowait(error)

    def _take(self, step: Any) -> None:
        iteration = IterationStats() if step.outputs and self._steps.log_stats else None
        processed = self._steps.process_outputs(step.outputs, step.timestamp, iteration)
        if processed.reqs_to_abort and (core := self._core()) is not None:
            abort = asyncio.ensure_future(core.abort_requests_async(processed.reqs_to_abort))
            self._aborts.add(abort)
            abort.add_done_callback(self._aborts.discard)
        self._steps.update_scheduler_stats(step.scheduler_stats)
        self._steps.stats.add(step.engine_index, step.scheduler_stats, iteration)

"""Measures how long the engine's steps take and how much they compute, to learn their cost.

A step's work comes with its statistics (`enable_logging_iteration_details`). A step's duration, by the engine's own
clock, is the time since the previous step. After an idle engine it is the time since the step's first request was
scheduled. vLLM's `elapsed_ms` is not used: on a CPU it misses the forward pass, and with asynchronous scheduling it
overlaps with the next step's.

A step that had to wait until this process was done with the previous one lasts as long as this process took for it.
Thousands of tokens a second can occupy this process more than the engine, and clients get tokens at the slower pace.
"""

from __future__ import annotations

from typing import Any

from tokka.step_costs import StepCostLearner, StepCosts


class StepTimes:
    """Learns from every step of every copy of the model after `learn` was called. Earlier steps include compilation."""

    def __init__(self) -> None:
        self._learner = StepCostLearner()
        self._kv_tokens = 0
        self._learns = False
        # End of the previous step by copy, on the engine's clock; None: the engine was idle after it.
        self._ended_s: dict[int, float | None] = {}
        # Time at which this process was done with the previous step, by copy, on the same clock.
        self._processed_s: dict[int, float] = {}

    @property
    def costs(self) -> StepCosts | None:
        return self._learner.costs

    def learn(self, kv_tokens: int) -> None:
        """Start learning. `kv_tokens`: tokens that the KV cache of one copy holds."""
        self._learns = True
        self._kv_tokens = kv_tokens

    def add(self, step: Any, now_s: float) -> None:
        """Add a step's EngineCoreOutputs, which this process has processed by `now_s` (monotonic, in seconds).

        Removes the step's details, which vLLM's own loggers would print.
        """
        stats = step.scheduler_stats
        if stats is None or stats.iteration_details is None:
            return
        details, stats.iteration_details = stats.iteration_details, None
        before_s, processed_s = self._ended_s.get(step.engine_index), self._processed_s.get(step.engine_index, 0.0)
        is_busy = stats.num_running_reqs + stats.num_waiting_reqs > 0
        self._ended_s[step.engine_index] = step.timestamp if is_busy else None
        self._processed_s[step.engine_index] = now_s
        began_s = _scheduled_s(step) if before_s is None else before_s
        if not self._learns or details.is_dummy or began_s is None or step.timestamp <= began_s:
            return
        seconds = step.timestamp - began_s
        if step.timestamp < processed_s:
            seconds = max(seconds, now_s - processed_s)
        decoding = details.num_generation_requests
        spec = stats.spec_decoding_stats
        # Generated tokens beyond one per request are recomputed after a preemption, like a prompt.
        again = 0 if spec else details.num_generation_tokens - decoding
        self._learner.add(
            seconds,
            decoding,
            details.num_ctx_tokens + again,
            round(stats.kv_cache_usage * self._kv_tokens),
            decoding + spec.num_accepted_tokens if spec else None,
        )


def _scheduled_s(step: Any) -> float | None:
    """Return when a step's first request was scheduled; None for a step with only a part of a prompt and no output."""
    from vllm.v1.engine import EngineCoreEventType

    scheduled = EngineCoreEventType.SCHEDULED
    times = [event.timestamp for out in step.outputs for event in out.events or () if event.type == scheduled]
    return min(times, default=None)

"""How long the engine's steps took, and what they computed: the source of what steps cost.

What a step computed comes with its statistics (`enable_logging_iteration_details`). How long it took is the time since
the step before, by the engine's own clock, or if the engine was idle the time since the first of its requests was
scheduled. vLLM's `elapsed_ms` is neither: on a CPU it misses the forward pass, and with asynchronous scheduling it
overlaps with the next step's.
"""

from __future__ import annotations

from typing import Any

from tokka.step_costs import StepCostLearner, StepCosts


class StepTimes:
    """Learns from every step of every copy of the model, once `learn` has been called: before, vLLM compiles."""

    def __init__(self) -> None:
        self._learner = StepCostLearner()
        self._kv_tokens = 0
        self._learns = False
        # When the step before ended, by copy; None: the engine was idle after it.
        self._ended_s: dict[int, float | None] = {}

    @property
    def costs(self) -> StepCosts | None:
        return self._learner.costs

    def learn(self, kv_tokens: int) -> None:
        """Learn from now on. `kv_tokens`: tokens that the memory of one copy holds."""
        self._learns = True
        self._kv_tokens = kv_tokens

    def add(self, step: Any) -> None:
        """Take a step's EngineCoreOutputs. Its details are taken away: vLLM's own loggers would print them."""
        stats = step.scheduler_stats
        if stats is None or stats.iteration_details is None:
            return
        details, stats.iteration_details = stats.iteration_details, None
        before_s = self._ended_s.get(step.engine_index)
        is_busy = stats.num_running_reqs + stats.num_waiting_reqs > 0
        self._ended_s[step.engine_index] = step.timestamp if is_busy else None
        began_s = _scheduled_s(step) if before_s is None else before_s
        if not self._learns or details.is_dummy or began_s is None or step.timestamp <= began_s:
            return
        decoding = details.num_generation_requests
        spec = stats.spec_decoding_stats
        # What is more than a token each is computed anew after a preemption, as a prompt is.
        again = 0 if spec else details.num_generation_tokens - decoding
        self._learner.add(
            step.timestamp - began_s,
            decoding,
            details.num_ctx_tokens + again,
            round(stats.kv_cache_usage * self._kv_tokens),
            decoding + spec.num_accepted_tokens if spec else None,
        )


def _scheduled_s(step: Any) -> float | None:
    """Return when the first request of a step was scheduled; None for a step with a part of a prompt alone, which has
    no output to tell it."""
    from vllm.v1.engine import EngineCoreEventType

    scheduled = EngineCoreEventType.SCHEDULED
    times = [event.timestamp for out in step.outputs for event in out.events or () if event.type == scheduled]
    return min(times, default=None)

"""Passes the outputs of an engine step to the requests that wait for them.

vLLM's own processor makes two objects of twenty fields per token, decodes the text twice, and wakes a task that wakes
another one. This processor does only the necessary work, directly in the step: count, decode, look for stop strings,
pass on. vLLM still handles requests, statistics and aborts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput

from tokka.engine.vllm.prompt_outputs import PromptOutputs
from tokka.engine.vllm.stats import StepStats


class StepProcessor(OutputProcessor):  # type: ignore[misc]
    """Replaces vLLM's output processor."""

    def __init__(self, *args: Any, stats: StepStats, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stats = stats
        # By the id that Tokka gave the request.
        self._prompts: dict[str, PromptOutputs] = {}

    @classmethod
    def instead_of(cls, processor: OutputProcessor, stats: StepStats) -> Self:
        return cls(
            processor.tokenizer,
            stats=stats,
            log_stats=processor.log_stats,
            stream_interval=processor.stream_interval,
            tracing_enabled=processor.tracing_enabled,
            admission_stats=processor.admission_stats,
        )

    def expect(self, request_id: str, prompt: PromptOutputs) -> None:
        """Register the receiver of a request's outputs. Call this before the request is added."""
        self._prompts[request_id] = prompt

    def forget(self, request_id: str) -> bool:
        """Unregister a request; return whether the engine still works on it."""
        self._prompts.pop(request_id, None)
        return request_id in self.external_req_ids

    def add_request(
        self, request: Any, prompt: str | None, parent_req: Any = None, request_index: int = 0, queue: Any = None
    ) -> None:
        sequence = self._prompts[request.external_req_id].sequence(request_index, request)
        super().add_request(request, prompt, parent_req, request_index, sequence)

    def process_outputs(
        self,
        engine_core_outputs: Sequence[EngineCoreOutput],
        engine_core_timestamp: float | None = None,
        iteration_stats: Any = None,
        weight_version: str | None = None,
    ) -> OutputProcessorOutput:
        stopped: list[str] = []
        for output in engine_core_outputs:
            state = self.request_states.get(output.request_id)
            if state is None:
                # The request was aborted meanwhile (design 3.4).
                continue
            self._update_stats_from_output(state, output, engine_core_timestamp, iteration_stats)
            try:
                is_over = self._take(state, output)
            except Exception as error:
                # A fault in Tokka's code for one request must not end the others, as a raised error would (design 4.7).
                state.queue.put(error)
                is_over = True
            if is_over:
                self._end(state, output, iteration_stats)
                if not output.finished:
                    # A stop string ended the sequence; vLLM does not see stop strings (design 4.1).
                    stopped.append(output.request_id)
        return OutputProcessorOutput(request_outputs=[], reqs_to_abort=stopped)

    @staticmethod
    def _take(state: Any, output: EngineCoreOutput) -> bool:
        """Pass a sequence its part of the step; return whether it has ended.

        vLLM's own processing of logprobs is left out: it would keep an object for each until the request ends.
        """
        # design 3.4
        if state.is_prefilling:
            state.is_prefilling = False
            if output.prefill_stats is not None:
                state.num_cached_tokens = output.prefill_stats.num_cached_tokens
            state.queue.begin(state.num_cached_tokens, output.new_prompt_logprobs_tensors)
        reason = None if output.finish_reason is None else str(output.finish_reason)
        ended: bool = state.queue.take(output.new_token_ids, reason, output.stop_reason, output.new_logprobs)
        return ended

    def _end(self, state: Any, output: EngineCoreOutput, iteration_stats: Any) -> None:
        from vllm.v1.engine import FinishReason

        if state.parent_req is not None:
            state.parent_req.child_requests.discard(state.request_id)
        self._finish_request(state)
        reason = output.finish_reason if output.finish_reason is not None else FinishReason.STOP
        self._update_stats_from_finished(state, reason, iteration_stats)

"""Passes the outputs of an engine step to the requests that wait for them.

vLLM's own processor makes two objects of twenty fields per token, decodes the text twice, and wakes a task that wakes
another one. This processor does only the necessary work, directly in the step: count, decode, look for stop strings,
pass on. It keeps vLLM's statistics of each sequence, for vLLM's metrics.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats

from tokka.engine.vllm.clients import VectorReceiver
from tokka.engine.vllm.prompt_outputs import SequenceOutputs

# What vLLM's statistics read of the sampling of a request that samples nothing.
_POOLING = SimpleNamespace(max_tokens=None, watermarking=None, _watermarking_skipped=False)


class EngineSequence:
    """A sequence that the engine works on."""

    __slots__ = ("cached_tokens", "is_prefilling", "max_tokens", "name", "outputs", "parent", "prompt_tokens", "stats")

    def __init__(
        self, request: EngineCoreRequest, parent: ParentRequest | None, outputs: SequenceOutputs | VectorReceiver
    ) -> None:
        params = request.sampling_params or _POOLING
        self.name = request.external_req_id
        self.outputs = outputs
        self.parent = parent
        self.prompt_tokens = len(request.prompt_token_ids)
        self.max_tokens = params.max_tokens
        self.is_prefilling = True
        self.cached_tokens = 0
        self.stats = RequestStateStats(
            arrival_time=request.arrival_time,
            is_watermarked=bool(params.watermarking),
            is_watermark_skipped=params._watermarking_skipped,
        )


@dataclass(slots=True)
class Processed:
    """What a part of a step did: sequences that a stop string ended, tokens computed or generated, and preemptions."""

    stopped: list[str]
    tokens: int
    preemptions: int


class StepProcessor:
    """Holds the sequences on the engine, by vLLM's id, and passes each its part of a step."""

    def __init__(self) -> None:
        self._sequences: dict[str, EngineSequence] = {}
        # No request has an adapter yet.
        self._loras = LoRARequestStates()

    def add(
        self, request: EngineCoreRequest, parent: ParentRequest | None, outputs: SequenceOutputs | VectorReceiver
    ) -> None:
        """Register the receiver of a sequence's outputs. Call this before the request is sent."""
        self._sequences[request.request_id] = EngineSequence(request, parent, outputs)

    def forget(self, request_id: str) -> bool:
        """Unregister a sequence; return whether the engine still works on it."""
        return self._sequences.pop(request_id, None) is not None

    def fail(self, error: Exception) -> None:
        """Pass the error to all sequences."""
        for sequence in list(self._sequences.values()):
            sequence.outputs.put(error)

    def get_num_unfinished_requests(self) -> int:
        """Return the number of sequences on the engine. vLLM's limits need this method and the next one."""
        return len(self._sequences)

    def get_num_queued_tokens(self) -> int:
        return sum(sequence.prompt_tokens for sequence in self._sequences.values() if sequence.is_prefilling)

    def process(self, outputs: Sequence[EngineCoreOutput], at_s: float, iteration: IterationStats) -> Processed:
        """Process a part of a step that ended at `at_s`, on the engine's clock. Adds its statistics to `iteration`."""
        stopped: list[str] = []
        prompts, latencies = iteration.prompt_token_stats, iteration.inter_token_latencies_iter
        generated, computed, preempted = (
            iteration.num_generation_tokens,
            prompts.computed,
            iteration.num_preempted_reqs,
        )
        tokens, now_s = 0, time.monotonic()
        for output in outputs:
            request_id = output.request_id
            sequence = self._sequences.get(request_id)
            if sequence is None:
                # The request was aborted meanwhile (design 3.4).
                continue
            stats = sequence.stats
            if sequence.is_prefilling or output.events is not None or output.num_nans_in_logits:
                iteration.update_from_output(output, at_s, sequence.is_prefilling, stats, self._loras, None)
            else:
                # vLLM's method does the same for an output with nothing but tokens.
                new = len(output.new_token_ids)
                tokens += new
                stats.num_generation_tokens += new
                latencies.append(at_s - stats.last_token_ts)
                stats.last_token_ts = at_s
            # design 3.5
            if now_s < sequence.outputs.gathers_until_s and output.finish_reason is None:
                sequence.outputs.gathered += output.new_token_ids
                continue
            try:
                is_over = _take(sequence, output)
            except Exception as error:
                # A fault in Tokka's code for one request must not end the others, as a raised error would (design 4.7).
                sequence.outputs.put(error)
                is_over = True
            if is_over:
                self._end(request_id, sequence, output, iteration)
                if output.finish_reason is None:
                    # A stop string ended the sequence; vLLM does not see stop strings (design 4.1).
                    stopped.append(request_id)
        iteration.num_generation_tokens += tokens
        return Processed(
            stopped,
            iteration.num_generation_tokens - generated + prompts.computed - computed,
            iteration.num_preempted_reqs - preempted,
        )

    def _end(
        self, request_id: str, sequence: EngineSequence, output: EngineCoreOutput, iteration: IterationStats
    ) -> None:
        del self._sequences[request_id]
        if sequence.parent is not None:
            sequence.parent.child_requests.discard(request_id)
        iteration.update_from_finished_request(
            output.finish_reason if output.finish_reason is not None else FinishReason.STOP,
            sequence.name,
            sequence.prompt_tokens,
            sequence.max_tokens,
            sequence.stats,
            sequence.cached_tokens,
        )
        ParentRequest.observe_finished_request(sequence.parent, iteration, sequence.stats.num_generation_tokens)


def _take(sequence: EngineSequence, output: EngineCoreOutput) -> bool:
    """Pass a sequence its part of the step; return whether it has ended."""
    # design 3.4
    if sequence.is_prefilling:
        sequence.is_prefilling = False
        if output.prefill_stats is not None:
            sequence.cached_tokens = output.prefill_stats.num_cached_tokens
        if output.pooling_output is not None:
            return sequence.outputs.pooled(output.pooling_output)
        sequence.outputs.begin(sequence.cached_tokens, output.new_prompt_logprobs_tensors)
    reason = None if output.finish_reason is None else str(output.finish_reason)
    return sequence.outputs.take(output.new_token_ids, reason, output.stop_reason, output.new_logprobs)

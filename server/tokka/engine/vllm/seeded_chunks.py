"""Runs in the engine process on a CPU: requests with a seed and a prompt that takes several steps.

vLLM also samples a token for a part of a prompt. It discards the token and rewinds the request's generator by its
offset. CPU generators have no offset, so the call ends the engine.
"""

from __future__ import annotations

from typing import Any


def rewind_generators() -> None:
    """Make vLLM's CPU runner seed a generator again instead of rewinding it.

    No kept token has been drawn from the generator by then, unless the request was preempted. After a preemption the
    later tokens are drawn like the first ones.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    plain = CPUModelRunner._bookkeeping_sync

    def bookkeeping(self: Any, *arguments: Any, **options: Any) -> Any:
        generators = self.input_batch.generators
        discarded = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]
        kept_aside = {place: generators.pop(place) for place in map(int, discarded) if place in generators}
        for generator in kept_aside.values():
            generator.manual_seed(generator.initial_seed())
        try:
            return plain(self, *arguments, **options)
        finally:
            generators.update(kept_aside)

    CPUModelRunner._bookkeeping_sync = bookkeeping

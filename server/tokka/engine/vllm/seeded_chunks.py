"""Inside the engine's process: requests with a seed whose prompt takes several steps, on a CPU.

vLLM samples for a part of a prompt as well, throws the token away and turns the request's generator back by the offset
that this took. Generators of a CPU have no offset: the call ends the engine.
"""

from __future__ import annotations

from typing import Any


def rewind_generators() -> None:
    """Have vLLM's runner for CPUs begin anew with the seed, where it would turn a generator back.

    No token that was kept has been drawn from it, unless the request was preempted: then its later tokens are drawn
    like its first ones.
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

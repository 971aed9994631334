"""One request of each kind before the first real one: at first use vLLM compiles helpers inside a step, for seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from tokka.core import Constraint, Event, GenerateRequest, Sampling, TokensPrompt

Generate = Callable[[GenerateRequest], AsyncGenerator[Event, None]]

_KINDS = {
    "greedy": Sampling(default_max_tokens=4, temperature=0.0, ignore_eos=True),
    "sampled": Sampling(
        default_max_tokens=4, temperature=0.7, top_p=0.9, top_k=20, min_p=0.01, seed=1, ignore_eos=True
    ),
    "logprobs": Sampling(default_max_tokens=4, temperature=0.0, logprobs=2, ignore_eos=True),
    "penalties": Sampling(
        default_max_tokens=4,
        temperature=0.7,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        repetition_penalty=1.1,
        logit_bias={0: 0.0},
    ),
}
# Its first use reads the tokenizer into another form.
_CONSTRAINED = Sampling(default_max_tokens=4, temperature=0.0, constraint=Constraint("regex", "[a-z ]{4,}", ""))


async def warm_up(generate: Generate, prompt: TokensPrompt, *, constrained: bool) -> None:
    """Run each kind alone, then all together, so that batches of one and of several are known."""
    kinds = _KINDS | ({"constrained": _CONSTRAINED} if constrained else {})
    for name, sampling in kinds.items():
        await _drain(generate(_request(name, prompt, sampling)))
    # Scoring a prompt takes another path through the sampler.
    await _drain(generate(_request("scored", prompt, Sampling(max_tokens=0, logprobs=1), echo=True)))
    await asyncio.gather(*(_drain(generate(_request(f"{name}-2", prompt, kind))) for name, kind in kinds.items()))


def _request(name: str, prompt: TokensPrompt, sampling: Sampling, echo: bool = False) -> GenerateRequest:
    return GenerateRequest(id=f"warmup-{name}", model="", prompts=(prompt,), sampling=sampling, echo=echo)


async def _drain(events: AsyncGenerator[Event, None]) -> None:
    async for _ in events:
        pass

"""Warm-up requests of each kind, and the first measurement of step costs.

At first use vLLM compiles helpers inside a step, which takes seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from tokka.core import Constraint, Event, GenerateRequest, Sampling, TokensPrompt
from tokka.engine.base import Prepared
from tokka.engine_facts import ModelInfo

Prepare = Callable[[GenerateRequest], Awaitable[Prepared]]

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
# The first use of a constraint converts the tokenizer.
_CONSTRAINED = Sampling(default_max_tokens=4, temperature=0.0, constraint=Constraint("regex", "[a-z ]{4,}", ""))

# Size of the measurement: tokens per choice, choices in the first batch, prompts that fill a step.
_MEASURED_TOKENS, _MEASURED_BATCH, _MEASURED_FILLS = 8, 16, 2
# Factor between two measured batches, and the maximum estimated seconds of a further one. CUDA graphs make a batch of
# another size cost up to ten times as much as a formula says.
_BATCH_GROWTH, _MOST_BATCH_S = 4, 0.5
# Tokens of a first prompt, from which the time of a full step is estimated, and maximum estimated seconds for a full
# step on every copy.
_MEASURED_PART, _MOST_S = 512, 2.0
_MEASURED = Sampling(max_tokens=_MEASURED_TOKENS, temperature=0.0, ignore_eos=True)


async def warm_up(prepare: Prepare, prompt: TokensPrompt, *, constrained: bool) -> None:
    """Run each kind alone, then all together, so that vLLM has run batches of one and of several."""
    kinds = _KINDS | ({"constrained": _CONSTRAINED} if constrained else {})
    for name, sampling in kinds.items():
        await _run(prepare, _request(name, prompt, sampling))
    # Scoring a prompt takes another path through the sampler.
    await _run(prepare, _request("scored", prompt, Sampling(max_tokens=0, logprobs=1), echo=True))
    await asyncio.gather(*(_run(prepare, _request(f"{name}-2", prompt, kind)) for name, kind in kinds.items()))


async def warm_up_embedding(prepare: Prepare, prompt: TokensPrompt) -> None:
    """Embed one input alone, then several at once."""
    for name, count in (("one", 1), ("several", _MEASURED_BATCH)):
        prompts = (prompt,) * count
        request = GenerateRequest(f"warmup-{name}", "", prompts, Sampling(max_tokens=0), task="embed")
        await (await prepare(request)).run(_Discard())


async def measure_steps(prepare: Prepare, info: ModelInfo) -> None:
    """Run requests that show step costs: one choice alone, prompts that fill a step, batches.

    The choices after the long prompts show what context costs. Otherwise the fit could not tell context from choices.
    """
    copies = info.copies
    fill = max(1, min((info.step_tokens or 1) // copies, info.max_model_len - _MEASURED_TOKENS - 1))
    part = min(fill, _MEASURED_PART)
    began_s = time.monotonic()
    for at in range(copies):
        await _run(prepare, _request(f"alone-{at}", _prompt(info, 1, at), _MEASURED))
    alone_s, began_s = time.monotonic() - began_s, time.monotonic()
    for at in range(copies):
        await _run(prepare, _request(f"part-{at}", _prompt(info, part, at), _MEASURED))
    part_s = time.monotonic() - began_s - alone_s
    # On a CPU a full step may take half a minute. Then the part alone must show the cost (design 1.9.2).
    if part_s * fill / part < _MOST_S:
        for at in range(copies, copies + _MEASURED_FILLS * copies):
            await _run(prepare, _request(f"fill-{at}", _prompt(info, fill, at), _MEASURED))
    # design 1.9.2
    batch, took_s = min(_MEASURED_BATCH * copies, info.max_running), 0.0
    while took_s * _BATCH_GROWTH < _MOST_BATCH_S:
        began_s = time.monotonic()
        await asyncio.gather(
            *(_run(prepare, _request(f"batch-{at}", _prompt(info, 1, at), _MEASURED)) for at in range(batch))
        )
        took_s = time.monotonic() - began_s
        if batch * _BATCH_GROWTH > info.max_running:
            break
        batch *= _BATCH_GROWTH


def _prompt(info: ModelInfo, tokens: int, number: int) -> TokensPrompt:
    """Return a different prompt for each number, so that the prefix cache does not hold it."""
    return TokensPrompt(tuple((3 + number + place * (number + 7)) % info.vocab_size for place in range(tokens)))


def _request(name: str, prompt: TokensPrompt, sampling: Sampling, echo: bool = False) -> GenerateRequest:
    return GenerateRequest(id=f"warmup-{name}", model="", prompts=(prompt,), sampling=sampling, echo=echo)


async def _run(prepare: Prepare, request: GenerateRequest) -> None:
    await (await prepare(request)).run(_Discard())


class _Discard:
    """A sink that discards every event."""

    def take(self, event: Event) -> bool:
        return True

    async def give(self, event: Event) -> None:
        pass

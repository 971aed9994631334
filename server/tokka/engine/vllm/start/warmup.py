"""Warm-up requests of each kind, and the first measurement of step costs.

At first use vLLM compiles helpers inside a step, which takes seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from tokka.core import Constraint, Event, GenerateRequest, Sampling, TokensPrompt
from tokka.engine_facts import ModelInfo

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
# The first use of a constraint converts the tokenizer.
_CONSTRAINED = Sampling(default_max_tokens=4, temperature=0.0, constraint=Constraint("regex", "[a-z ]{4,}", ""))

# Size of the measurement: tokens per choice, choices in the batch, prompts that fill a step.
_MEASURED_TOKENS, _MEASURED_BATCH, _MEASURED_FILLS = 8, 16, 2
# Tokens of a first prompt, from which the time of a full step is estimated, and maximum estimated seconds for a full
# step on every copy.
_MEASURED_PART, _MOST_S = 512, 2.0
_ONE_TOKEN = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
_MEASURED = Sampling(max_tokens=_MEASURED_TOKENS, temperature=0.0, ignore_eos=True)


async def warm_up(generate: Generate, prompt: TokensPrompt, *, constrained: bool) -> None:
    """Run each kind alone, then all together, so that vLLM has run batches of one and of several."""
    kinds = _KINDS | ({"constrained": _CONSTRAINED} if constrained else {})
    for name, sampling in kinds.items():
        await _drain(generate(_request(name, prompt, sampling)))
    # Scoring a prompt takes another path through the sampler.
    await _drain(generate(_request("scored", prompt, Sampling(max_tokens=0, logprobs=1), echo=True)))
    await asyncio.gather(*(_drain(generate(_request(f"{name}-2", prompt, kind))) for name, kind in kinds.items()))


async def measure_steps(generate: Generate, info: ModelInfo) -> None:
    """Run requests that show step costs: one choice alone, prompts that fill a step, a batch."""
    copies = info.copies
    fill = max(1, min((info.step_tokens or 1) // copies, info.max_model_len - _MEASURED_TOKENS - 1))
    part = min(fill, _MEASURED_PART)
    batch = min(_MEASURED_BATCH * copies, info.max_running)
    for at in range(copies):
        await _drain(generate(_request(f"alone-{at}", _prompt(info, 1, at), _MEASURED)))
    began_s = time.monotonic()
    for at in range(copies):
        await _drain(generate(_request(f"part-{at}", _prompt(info, part, at), _ONE_TOKEN)))
    # On a CPU a full step may take half a minute. Then the part alone must show the cost (design 1.9.2).
    if (time.monotonic() - began_s) * fill / part < _MOST_S:
        for at in range(copies, copies + _MEASURED_FILLS * copies):
            await _drain(generate(_request(f"fill-{at}", _prompt(info, fill, at), _ONE_TOKEN)))
    await asyncio.gather(
        *(_drain(generate(_request(f"batch-{at}", _prompt(info, 1, at), _MEASURED))) for at in range(batch))
    )


def _prompt(info: ModelInfo, tokens: int, number: int) -> TokensPrompt:
    """Return a different prompt for each number, so that the prefix cache does not hold it."""
    return TokensPrompt(tuple((3 + number + place * (number + 7)) % info.vocab_size for place in range(tokens)))


def _request(name: str, prompt: TokensPrompt, sampling: Sampling, echo: bool = False) -> GenerateRequest:
    return GenerateRequest(id=f"warmup-{name}", model="", prompts=(prompt,), sampling=sampling, echo=echo)


async def _drain(events: AsyncGenerator[Event, None]) -> None:
    async for _ in events:
        pass

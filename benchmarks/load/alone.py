"""Measure the CPU cost of vLLM's engine client alone: AsyncLLM in a process, without HTTP or a server.

    scripts/bench alone

Model and loads are the same as for `scripts/bench front`. A server that uses AsyncLLM unchanged cannot cost less.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.rounds import tiny_model
from benchmarks.load.versus import FRONT_LOADS, Load

PROMPT = list(range(100, 150))


async def cpu_s(one: Callable[[], Awaitable[None]], users: int, seconds: float) -> float:
    """Return this process's CPU seconds per request under `users` simulated users, each with one open request."""
    count = 0

    async def user(until_s: float) -> None:
        nonlocal count
        while time.monotonic() < until_s:
            await one()
            count += 1

    async def crowd(lasts_s: float) -> None:
        until_s = time.monotonic() + lasts_s
        await asyncio.gather(*(user(until_s) for _ in range(users)))

    await crowd(seconds / 4)
    count, began_s = 0, time.process_time()
    await crowd(seconds)
    return (time.process_time() - began_s) / count


def request(llm: Any, load: Load) -> Callable[[], Awaitable[None]]:
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    numbers = itertools.count()
    kind = RequestOutputKind.DELTA if load.stream else RequestOutputKind.FINAL_ONLY

    async def one() -> None:
        params = SamplingParams(max_tokens=load.tokens, ignore_eos=True, output_kind=kind)
        async for _ in llm.generate(tokens_input(PROMPT), params, f"{load.label}-{next(numbers)}"):
            pass

    return one


async def measure(model: Path, seconds: float) -> None:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    options = AsyncEngineArgs(model=str(model), enforce_eager=True, max_model_len=2048, max_num_batched_tokens=2048)
    llm = AsyncLLM.from_engine_args(options)
    try:
        print("| load | CPU, ms/request | us/token |\n|---|---|---|")
        for load in FRONT_LOADS:
            each_s = await cpu_s(request(llm, load), load.users, seconds)
            print(f"| {load.label} | {each_s * 1e3:.2f} | {each_s * 1e6 / load.tokens:.1f} |", flush=True)
    finally:
        llm.shutdown()


def alone(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    chosen = parser.parse_args(arguments)
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with tiny_model() as model:
        asyncio.run(measure(model, chosen.seconds))

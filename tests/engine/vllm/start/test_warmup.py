"""The measurement of step costs shows what context costs, and large batches where they are quick."""

from __future__ import annotations

import asyncio

from tokka.core import Accepted, GenerateRequest, TokensPrompt, Usage
from tokka.engine.base import Sink
from tokka.engine.vllm.start.warmup import measure_steps
from tokka.engine_facts import ModelInfo


class Engine:
    """Records requests. Each takes `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[GenerateRequest] = []
        self._seconds = seconds

    async def prepare(self, request: GenerateRequest) -> Prepared:
        self.asked.append(request)
        return Prepared(self._seconds)


class Prepared:
    """A prepared request that takes `seconds`."""

    accepted = Accepted(())

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def run(self, sink: Sink) -> Usage:
        await asyncio.sleep(self._seconds)
        return Usage(0, 0)


async def measured(engine: Engine, max_running: int = 512) -> ModelInfo:
    info = ModelInfo(8192, 1000, "test", "", False, max_running, step_tokens=4096)
    await measure_steps(engine.prepare, info)
    return info


def batches(engine: Engine) -> int:
    return sum("batch" in request.id for request in engine.asked)


async def test_each_long_prompt_is_followed_by_tokens_on_its_context() -> None:
    engine = Engine()
    await measured(engine)
    long = [
        request
        for request in engine.asked
        if isinstance(prompt := request.prompts[0], TokensPrompt) and len(prompt.token_ids) > 1
    ]
    assert len(long) == 3
    assert all((request.sampling.max_tokens or 0) > 1 for request in long)


async def test_quick_engine_runs_larger_batches_up_to_its_maximum() -> None:
    engine = Engine()
    await measured(engine)
    assert batches(engine) == 16 + 64 + 256


async def test_batch_is_never_larger_than_the_maximum() -> None:
    engine = Engine()
    await measured(engine, max_running=8)
    assert batches(engine) == 8


async def test_slow_engine_runs_one_batch() -> None:
    engine = Engine(seconds=0.2)
    await measured(engine)
    assert batches(engine) == 16

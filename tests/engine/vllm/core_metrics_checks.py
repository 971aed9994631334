"""Tokka's client records the same vLLM metrics as vLLM's own client. Run by test_core_client.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.vllm.core_client_checks import PROMPT, Outputs, params_of
from tests.engine.vllm.scripted_core import ScriptedCore, scripted_llm, small_model, until
from tokka.core import Sampling

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

# Their values depend on this process's clock; the number of values does not.
BY_CLOCK = ("vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds")
SAMPLINGS = {"plain": Sampling(), "choices": Sampling(n=2, temperature=0.7), "aborted": Sampling()}


def script(ids: dict[str, list[str]]) -> list[Any]:
    """Return steps with everything that vLLM counts: prefill, decoding, preemption, several tokens, ends, a cache hit.

    `ids`: the sequences of each request.
    """
    from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, FinishReason
    from vllm.v1.metrics.stats import PrefillStats, PrefixCacheStats, SchedulerStats

    kind = EngineCoreEventType
    everyone = [one for sequences in ids.values() for one in sequences]

    def events(*pairs: tuple[Any, float]) -> list[Any]:
        return [EngineCoreEvent(kind, at_s) for kind, at_s in pairs]

    def step(at_s: float, outputs: list[Any], queries: int = 0, hits: int = 0) -> Any:
        prefix = PrefixCacheStats(requests=int(queries > 0), queries=queries, hits=hits)
        stats = SchedulerStats(len(outputs), 1, kv_cache_usage=at_s / 100, prefix_cache_stats=prefix)
        return EngineCoreOutputs(outputs=outputs, scheduler_stats=stats, timestamp=at_s)

    first = [
        EngineCoreOutput(
            one,
            [11],
            events=events((kind.QUEUED, 1.0), (kind.SCHEDULED, 1.5)),
            prefill_stats=PrefillStats(len(PROMPT), len(PROMPT) - at, at, at),
        )
        for at, one in enumerate(everyone)
    ]
    more = [EngineCoreOutput(one, [12, 13]) for one in everyone]
    preempted = [EngineCoreOutput(everyone[0], [14], events=events((kind.PREEMPTED, 3.0), (kind.SCHEDULED, 3.5)))]
    ends = [
        EngineCoreOutput(one, [15], finish_reason=FinishReason.STOP if at else FinishReason.LENGTH)
        for at, one in enumerate(ids["plain"] + ids["choices"])
    ]
    return [
        step(2.0, first[:2], queries=20, hits=4),
        step(2.3, first[2:], queries=10, hits=1),
        step(2.5, more),
        step(2.51, []),
        step(4.0, preempted),
        step(4.2, ends),
    ]


def metrics() -> dict[str, float]:
    """Return the samples of vLLM's metrics that the steps determine."""
    from prometheus_client import REGISTRY

    found = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            by_clock = metric.name in BY_CLOCK and not sample.name.endswith("_count")
            if metric.name.startswith("vllm:") and not by_clock and not sample.name.endswith("_created"):
                labels = {name: value for name, value in sample.labels.items() if name != "model_name"}
                found[f"{sample.name}{sorted(labels.items())}"] = round(sample.value, 6)
    return found


def total(name: str) -> float:
    return sum(value for series, value in metrics().items() if series.startswith(f"{name}["))


async def counted(
    core: ScriptedCore, add: Callable[[str, Sampling], Awaitable[Any]], abort: Callable[[str], Awaitable[None]]
) -> dict[str, float]:
    """Run the script; return vLLM's metrics after it."""
    ids = {}
    for name, sampling in SAMPLINGS.items():
        await add(name, sampling)
        ids[name] = [core.added().request_id for _ in range(sampling.n)]
    *steps, last = script(ids)
    for step in steps:
        core.send(step)
    await until(lambda: total("vllm:num_preemptions_total"))
    await abort("aborted")
    core.send(last)
    await until(lambda: total("vllm:request_success_total"))
    return metrics()


async def from_vllm(model: Path, folder: Path) -> dict[str, float]:
    from vllm.inputs import tokens_input

    async with scripted_llm(model, folder) as (llm, core):

        async def add(name: str, sampling: Sampling) -> None:
            await llm.add_request(name, tokens_input(PROMPT), params_of(sampling))

        return await counted(core, add, llm.abort)


async def from_tokka(model: Path, folder: Path) -> dict[str, float]:
    from tokka.engine.vllm.clients import client_of

    async with scripted_llm(model, folder) as (llm, core):
        client: Any = client_of(llm)
        client.stats.record()
        ids = {}

        async def add(name: str, sampling: Sampling) -> None:
            params = params_of(sampling)
            await client.complete(params)
            ids[name] = client.add(name, Outputs(), PROMPT, params)

        async def abort(name: str) -> None:
            client.drop(ids[name])

        return await counted(core, add, abort)


def test_metrics_equal_vllms_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = small_model()
    theirs = asyncio.run(from_vllm(model, tmp_path_factory.mktemp("core")))
    ours = asyncio.run(from_tokka(model, tmp_path_factory.mktemp("core")))
    assert sum(value > 0 for value in theirs.values()) > 150
    assert ours == theirs

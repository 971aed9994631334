"""A client of the engine through vLLM's public `AsyncLLM`, for versions of vLLM that Tokka does not know.

It takes more CPU per token, and does not report the engine's own statistics: no step costs, no cache usage. vLLM's
metrics also count the warm-up requests. Validation errors arrive when the request runs.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import numpy as np

from tokka.engine.vllm.clients import VectorReceiver
from tokka.engine.vllm.prompt_outputs import PromptOutputs, SequenceOutputs
from tokka.engine.vllm.step_times import StepTimes


class PublicStats:
    """The statistics that can be counted outside of the engine, in the form of `StepStats`."""

    def __init__(self) -> None:
        self._state = SimpleNamespace(num_running_reqs=0, num_waiting_reqs=0, kv_cache_usage=0.0)
        self._latest = SimpleNamespace(scheduler=self._state, steps=0, preemptions=0)
        self.latest: dict[int, Any] = {0: self._latest}
        # Learns nothing, since no step is added.
        self.times = StepTimes()

    def record(self) -> None:
        """Do nothing: vLLM records its metrics itself."""

    def count(self, running: int, *, output: bool = False) -> None:
        self._state.num_running_reqs = running
        self._latest.steps += output


class PublicClient:
    """Runs each prompt in a task that reads `AsyncLLM.generate`. Implements `EngineClient`."""

    def __init__(self, llm: Any) -> None:
        self.stats = PublicStats()
        self._llm = llm
        self._numbers = itertools.count()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, Sequence[SequenceOutputs | VectorReceiver]] = {}

    @property
    def is_dead(self) -> bool:
        return bool(self._llm.errored)

    @property
    def unfinished(self) -> int:
        return sum(map(len, self._running.values()))

    async def ping(self) -> None:
        await self._llm.is_paused()

    async def complete(self, params: Any) -> None:
        """Do nothing: `generate` validates and completes parameters."""

    def add(
        self,
        name: str,
        outputs: PromptOutputs,
        token_ids: list[int],
        params: Any,
        *,
        cache_salt: str | None = None,
        reasoning_ended: bool | None = None,
    ) -> list[str]:
        from vllm.inputs import tokens_input

        prompt = tokens_input(token_ids, cache_salt=cache_salt)
        request_id = f"{name}-{next(self._numbers):08x}"
        request = SimpleNamespace(prompt_token_ids=token_ids, prompt_embeds=None, sampling_params=params)
        sequences = [outputs.sequence(index, request) for index in range(params.n)]
        self._running[request_id] = sequences
        self.stats.count(self.unfinished)
        results = self._llm.generate(prompt, params, request_id, reasoning_ended=reasoning_ended)
        task = self._tasks[request_id] = asyncio.create_task(self._read(sequences, results, params))
        # Also for a task that is cancelled before its first turn.
        task.add_done_callback(lambda _: self._forget(request_id))
        return [request_id]

    def embed(self, name: str, outputs: VectorReceiver, token_ids: list[int], params: Any) -> list[str]:
        from vllm.inputs import tokens_input

        request_id = f"{name}-{next(self._numbers):08x}"
        self._running[request_id] = [outputs]
        self.stats.count(self.unfinished)
        results = self._llm.encode(tokens_input(token_ids), params, request_id)
        task = self._tasks[request_id] = asyncio.create_task(self._read_vector(outputs, results))
        task.add_done_callback(lambda _: self._forget(request_id))
        return [request_id]

    async def _read_vector(self, outputs: VectorReceiver, results: Any) -> None:
        try:
            async with aclosing(results):
                async for result in results:
                    self.stats.count(self.unfinished, output=True)
                    if outputs.pooled(result.outputs.data):
                        return
        except Exception as error:
            outputs.put(error)

    def drop(self, ids: Sequence[str]) -> None:
        """Forget requests, and abort those that the engine still works on."""
        for request_id in ids:
            if task := self._tasks.get(request_id):
                task.cancel()

    def fail(self, error: Exception) -> None:
        """End all generations with the error."""
        for request_id, sequences in list(self._running.items()):
            for sequence in sequences:
                sequence.put(error)
            self._tasks[request_id].cancel()

    def _forget(self, request_id: str) -> None:
        del self._running[request_id], self._tasks[request_id]
        self.stats.count(self.unfinished)

    async def _read(self, running: list[SequenceOutputs], results: Any, params: Any) -> None:
        """Pass a prompt's results on until all of its sequences have ended. If it ends early, vLLM aborts the rest."""
        sequences, begun = dict(enumerate(running)), set()
        try:
            async with aclosing(results):
                async for result in results:
                    self.stats.count(self.unfinished, output=True)
                    for part in result.outputs:
                        if (sequence := sequences.get(part.index)) is None:
                            continue
                        if part.index not in begun:
                            begun.add(part.index)
                            sequence.begin(result.num_cached_tokens or 0, _prompt_scores(result, params))
                        if part.finish_reason is None and time.monotonic() < sequence.gathers_until_s:
                            sequence.gathered += part.token_ids
                            continue
                        scores = _scores(part, params)
                        if sequence.take(part.token_ids, part.finish_reason, part.stop_reason, scores):
                            del sequences[part.index]
                    if not sequences:
                        break
        except Exception as error:
            for sequence in sequences.values():
                sequence.put(error)


def _scores(part: Any, params: Any) -> Any:
    """Return a part's logprobs in the form of the engine's messages: own token first, then the alternatives."""
    if part.logprobs is None:
        return None
    rows = [_row(token, scored, params) for token, scored in zip(part.token_ids, part.logprobs, strict=True)]
    ids, logprobs = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.array([]),) * 2
    return SimpleNamespace(logprob_token_ids=ids, logprobs=logprobs)


def _prompt_scores(result: Any, params: Any) -> Any:
    # The first token has none.
    if result.prompt_logprobs is None or len(result.prompt_token_ids) < 2:
        return None
    scored = list(zip(result.prompt_token_ids, result.prompt_logprobs, strict=True))[1:]
    # Listed tokens are alternatives of the completion alone.
    params = SimpleNamespace(logprob_token_ids=None, logprobs=params.prompt_logprobs)
    ids, logprobs = (np.array(column) for column in zip(*(_row(*one, params) for one in scored), strict=True))
    return ids, logprobs, np.array([of_token[token].rank for token, of_token in scored])


def _row(token: int, scored: Any, params: Any) -> tuple[list[int], list[float]]:
    likeliest = [one for one in sorted(scored, key=lambda one: scored[one].rank) if scored[one].rank <= params.logprobs]
    ids = [token, *(params.logprob_token_ids or likeliest)]
    return ids, [scored[one].logprob for one in ids]

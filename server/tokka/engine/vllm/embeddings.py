"""Embeds on a started engine with a pooling model: prepares the inputs, runs them, and delivers their vectors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokka.core import Accepted, Embedding, GenerateRequest, TextPrompt, TokensPrompt, Usage
from tokka.engine.base import Sink
from tokka.engine.generation.embedding import (
    MOST_AT_ONCE,
    VectorLimits,
    check_dimensions,
    check_ids,
    check_length,
    param_of,
    truncation_of,
)
from tokka.engine.generation.slices import Slices
from tokka.engine.vllm.clients import EngineClient
from tokka.engine.vllm.error_mapping import EndedByEngine, translate
from tokka.engine.vllm.render import Renderer
from tokka.engine.vllm.start.environment import engine_version
from tokka.engine_facts import ModelInfo
from tokka.errors import EngineDied, UnsupportedTask


@dataclass(frozen=True, slots=True)
class Ends:
    """The tokens that the tokenizer puts before and after a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> Ends:
        """Read them off a short text."""
        plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = list(tokenizer("a")["input_ids"])
        for at in range(len(whole) - len(plain) + 1):
            if plain and whole[at : at + len(plain)] == plain:
                return cls(tuple(whole[:at]), tuple(whole[at + len(plain) :]))
        return cls()


@dataclass(frozen=True, slots=True)
class PreparedEmbedding:
    """Validated inputs that the engine has not received yet. Implements `Prepared`."""

    embeddings: Embeddings
    name: str
    prompts: list[list[int]]
    dimensions: int
    # The requested dimensions, if they are not the model's own.
    shortened: int | None

    @property
    def accepted(self) -> Accepted:
        return Accepted(tuple(self.prompts), dimensions=self.dimensions)

    def run(self, sink: Sink) -> Coroutine[Any, Any, Usage]:
        return self.embeddings.run(self, sink)


class Embeddings:
    """Runs requests for vectors on vLLM's engine."""

    def __init__(self, client: EngineClient, renderer: Renderer, limits: VectorLimits, ends: Ends) -> None:
        self.renderer = renderer
        self._client = client
        self._limits = limits
        self._ends = ends
        self._is_closed = False

    async def close(self) -> None:
        """Refuse new requests, and send the engine no more aborts."""
        self._is_closed = True

    async def prepare(self, request: GenerateRequest) -> PreparedEmbedding:
        """Implement `Engine.prepare`."""
        if request.task != "embed":
            raise UnsupportedTask("This model can only embed.", param="model")
        limits, slices = self._limits, Slices()
        dimensions = check_dimensions(request, limits)
        prompts: list[list[int]] = []
        kept = truncation_of(request, limits)
        # The tokens around a text stay when it is cut.
        kept_text = kept and replace(kept, before=self._ends.before, after=self._ends.after)
        for prompt in request.prompts:
            param = param_of(request, prompt)
            if isinstance(prompt, TokensPrompt):
                check_ids(prompt.token_ids, limits, param)
            cut = kept_text if isinstance(prompt, TextPrompt) else kept
            ids = await self.renderer.token_ids(prompt, request.tenant, cut)
            check_length(len(ids), limits, param)
            prompts.append(ids)
            await slices.rest()
        shortened = None if dimensions == limits.dimensions else dimensions
        return PreparedEmbedding(self, request.id, prompts, dimensions, shortened)

    async def run(self, prepared: PreparedEmbedding, sink: Sink) -> Usage:
        """Run prepared inputs, as `Prepared.run` says. At most `MOST_AT_ONCE` are on the engine."""
        arrived: asyncio.Queue[Arrival] = asyncio.Queue()
        ids: list[str] = []
        try:
            if self._is_closed:
                raise EngineDied
            params = _params(prepared.shortened)
            await self._client.complete(params)
            for at, tokens in enumerate(prepared.prompts):
                if at >= MOST_AT_ONCE:
                    await _deliver(arrived, sink)
                outputs = VectorOutputs(at, arrived)
                ids += self._client.embed(f"{prepared.name}-{at}", outputs, tokens, params)
            for _ in prepared.prompts[-MOST_AT_ONCE:]:
                await _deliver(arrived, sink)
        except Exception as error:
            raise translate(error) from error
        finally:
            if not self._is_closed:
                self._client.drop(ids)
        return Usage(sum(map(len, prepared.prompts)), 0)


Arrival = Embedding | Exception


async def _deliver(arrived: asyncio.Queue[Arrival], sink: Sink) -> None:
    """Give the sink the next vector. Raises the error of an input."""
    one = await arrived.get()
    if isinstance(one, Exception):
        raise one
    await sink.give(one)


def _params(dimensions: int | None) -> Any:
    from vllm import PoolingParams

    return PoolingParams(task="embed", dimensions=dimensions)


class VectorOutputs:
    """Receives the vector of one input within the engine's step, in place of `SequenceOutputs`."""

    __slots__ = ("_arrived", "_place", "gathered", "gathers_until_s")

    def __init__(self, place: int, arrived: asyncio.Queue[Arrival]) -> None:
        self._place = place
        self._arrived = arrived
        self.gathered: list[int] = []
        self.gathers_until_s = -math.inf

    def begin(self, cached_tokens: int, scores: Any) -> None:
        """Do nothing: a vector has no first token."""

    def pooled(self, vector: Any) -> bool:
        """Take the vector, a tensor. Return whether the input has ended."""
        numbers = vector.detach().float().cpu().numpy().astype("<f4")
        self._arrived.put_nowait(Embedding(self._place, numbers.tobytes()))
        return True

    def take(self, token_ids: Sequence[int], reason: str | None, stop: Any, scores: Any) -> bool:
        """Take an output without a vector: the engine has ended the input. Return whether it has."""
        if reason is None:
            return False
        self.put(EndedByEngine(reason))
        return True

    def put(self, output: object) -> None:
        if isinstance(output, Exception):
            self._arrived.put_nowait(output)


def embeddings_of(llm: Any, client: EngineClient, *, cpu: bool) -> tuple[Embeddings, ModelInfo]:
    """Return what embeds on a started AsyncLLM with a pooling model, and the model's properties."""
    limits, tokenizer, config = _vector_limits(llm.model_config), llm.get_tokenizer(), llm.vllm_config
    renderer = Renderer(tokenizer, None, limits.max_model_len, limits.vocab_size)
    copies, scheduler = config.parallel_config.data_parallel_size, config.scheduler_config
    info = ModelInfo(
        max_model_len=limits.max_model_len,
        vocab_size=limits.vocab_size,
        engine="vllm",
        engine_version=engine_version(),
        has_chat_template=False,
        tasks=frozenset({"embed"}),
        dimensions=limits.dimensions,
        max_running=scheduler.max_num_seqs * copies,
        step_tokens=scheduler.max_num_batched_tokens * copies,
        copies=copies,
        gpus=0 if cpu else config.parallel_config.world_size * copies,
    )
    return Embeddings(client, renderer, limits, Ends.of(tokenizer)), info


def _vector_limits(config: Any) -> VectorLimits:
    shorter = config.matryoshka_dimensions if config.is_matryoshka else ()
    return VectorLimits(
        config.max_model_len,
        config.get_vocab_size(),
        config.embedding_size,
        None if shorter is None else tuple(shorter),
    )

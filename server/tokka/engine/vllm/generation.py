"""Runs requests on a started engine: prepares a request, adds it prompt by prompt, delivers its outputs as events."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokka.core import Accepted, GenerateRequest, Sampling, TextPrompt, Usage
from tokka.engine.base import Sink
from tokka.engine.generation.delivery import Delivery
from tokka.engine.generation.length import allowed_tokens, truncation
from tokka.engine.generation.resume import check_continues, check_resume
from tokka.engine.generation.slices import Slices
from tokka.engine.generation.token_ids import check_token_ids
from tokka.engine.grammars.loosening import compile_loosening
from tokka.engine.grammars.service import GrammarService
from tokka.engine.reading.readers import Readers, ReadingPlan
from tokka.engine.vllm.clients import EngineClient
from tokka.engine.vllm.error_mapping import translate
from tokka.engine.vllm.params import is_greedy, sampling_params
from tokka.engine.vllm.params_cache import ParamsCache
from tokka.engine.vllm.parsers import Parsers
from tokka.engine.vllm.prompt_outputs import PromptOutputs
from tokka.engine.vllm.render import Renderer
from tokka.engine.vllm.vocabulary import Vocabulary
from tokka.errors import EngineDied, InvalidRequest, UnsupportedParameter


@dataclass(frozen=True, slots=True)
class Language:
    """Converts between text and the model's tokens, in both directions."""

    renderer: Renderer
    vocabulary: Vocabulary
    grammars: GrammarService
    parsers: Parsers


@dataclass(frozen=True, slots=True)
class Limits:
    """Context length in tokens, vocabulary size in ids, and maximum tokens per choice (None: no limit)."""

    max_model_len: int
    vocab_size: int
    max_completion_tokens: int | None
    # Tokens per choice if the request sets no limit, from the model's generation_config.json.
    default_tokens: int | None


@dataclass(frozen=True, slots=True)
class PreparedGeneration:
    """A validated and rendered request that the engine has not received yet. Implements `Prepared`."""

    generations: Generations
    request: GenerateRequest
    prompts: list[list[int]]
    # Maximum tokens per choice, for each prompt.
    limits: list[int]
    # Choices per sequence of the engine: greedy choices are generated once and copied.
    copies: int
    grammar: str | None
    bad_words: list[list[int]] | None
    reading: ReadingPlan | None

    @property
    def accepted(self) -> Accepted:
        return Accepted(tuple(self.prompts), tuple(self.limits))

    def run(self, sink: Sink) -> Coroutine[Any, Any, Usage]:
        return self.generations.run(self, sink)


class Generations:
    """Runs requests on vLLM's engine. `defaults`: the model's own sampling, for fields that a request omits."""

    def __init__(
        self, llm: Any, client: EngineClient, language: Language, limits: Limits, defaults: Mapping[str, Any]
    ) -> None:
        self._llm = llm
        self._client = client
        self.language = language
        self._limits = limits
        self._defaults = defaults
        self._params_cache = ParamsCache()
        self._is_closed = False

    @property
    def renderer(self) -> Renderer:
        return self.language.renderer

    async def close(self) -> None:
        """Refuse new requests, send the engine no more aborts, and end the compilers."""
        self._is_closed = True
        await self.language.grammars.close()

    async def prepare(self, request: GenerateRequest) -> PreparedGeneration:
        """Implement `Engine.prepare`."""
        language, sampling, slices = self.language, request.sampling, Slices()
        prompts = []
        kept = truncation(request, self._limits.max_model_len)
        for prompt in request.prompts:
            ids = await language.renderer.token_ids(prompt, request.tenant, kept, salt=request.cache_salt)
            prompts.append(ids)
            await slices.rest()
        # design 2.2
        check_token_ids(sampling, self._limits.vocab_size)
        bounds = self._limits
        limits = [
            allowed_tokens(request, len(ids), bounds.max_model_len, bounds.max_completion_tokens, bounds.default_tokens)
            for ids in prompts
        ]
        # design 2.3
        request = language.parsers.constrained(request)
        sampling = request.sampling
        if sampling.thinking_token_budget is not None:
            sampling = self._budgeted(sampling)
            request = replace(request, sampling=sampling)
        # design 2.5
        copies = sampling.n if is_greedy(sampling, self._defaults) else 1
        choices = len(prompts) * sampling.n // copies
        grammar = None
        if sampling.constraint is not None:
            grammar = await compile_loosening(language.grammars, sampling.constraint, request.tenant, choices)
        words = sampling.bad_words
        bad_words = await language.renderer.bad_words(words, request.tenant) if words else None
        # design 2.4
        reading = language.parsers.reading(request, prompts[0])
        # design 2.9
        check_resume(request, limits[0], bounds.vocab_size, is_read=reading is not None)
        # design 2.4.2
        if reading is not None and language.parsers.shows_special(reading):
            request = replace(request, sampling=replace(sampling, skip_special_tokens=False))
        return PreparedGeneration(self, request, prompts, limits, copies, grammar, bad_words, reading)

    async def run(self, prepared: PreparedGeneration, sink: Sink) -> Usage:
        """Run a prepared request, as `Prepared.run` says."""
        n, reading, constraint = prepared.request.sampling.n, prepared.reading, prepared.request.sampling.constraint
        prompts, prompt_tokens = len(prepared.prompts), sum(map(len, prepared.prompts))
        outputs: list[PromptOutputs] = []
        # design 4.3
        readers = None if reading is None else Readers(reading, lambda index: outputs[index // n].end(index))
        delivery = Delivery(sink, prompts * n, readers.read if readers is not None else None)
        outputs += [self._outputs(prepared, at, delivery) for at in range(prompts)]
        # Ids of the sequences on the engine.
        ids: list[str] = []
        try:
            # design 2.7
            if self._is_closed:
                raise EngineDied
            await self._add(prepared, outputs, ids)
            # The tokens of a long prompt take a megabyte, and a stream may stay open for long.
            del prepared
            await delivery.run()
        except Exception as error:
            raise translate(error, constraint) from error
        finally:
            # design 4.4
            if not self._is_closed:
                self._client.drop(ids)
        reasoning_tokens = 0
        if readers is not None and reading is not None and reading.count_thoughts:
            reasoning_tokens = await asyncio.to_thread(lambda: readers.reasoning_tokens)
        # design 4.9
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(output.completion_tokens for output in outputs),
            cached_tokens=sum(output.cached_tokens for output in outputs),
            reasoning_tokens=reasoning_tokens,
        )

    def _budgeted(self, sampling: Sampling) -> Sampling:
        """Return the sampling, without a reasoning budget that the engine cannot enforce. Raises InvalidRequest."""
        name, constraint = "thinking_token_budget", sampling.constraint
        config = self._llm.vllm_config.reasoning_config
        # design 2.3.3
        is_bounded = config is not None and config.enabled
        if is_bounded and constraint is None:
            return sampling
        if sampling.is_budget_optional:
            return replace(sampling, thinking_token_budget=None)
        if not is_bounded:
            raise UnsupportedParameter(
                f"'{name}' needs a server with a --reasoning-parser for this model. Leave it out.", param=name
            )
        # Both restrict the next token, and together they might allow none.
        assert constraint is not None
        raise InvalidRequest(f"{name} cannot be combined with {constraint.param}: leave one out.", param=name)

    def _outputs(self, prepared: PreparedGeneration, at: int, delivery: Delivery) -> PromptOutputs:
        request = prepared.request
        return PromptOutputs(
            at,
            prepared.prompts[at],
            request,
            delivery,
            copies=prepared.copies,
            limit=prepared.limits[at],
            echo=self._echoed(request, at, prepared.prompts[at]) if request.echo else None,
            vocabulary=self.language.vocabulary,
        )

    def _echoed(self, request: GenerateRequest, at: int, ids: list[int]) -> str:
        """Return the prompt's text as the engine runs it."""
        prompt = request.prompts[at]
        if isinstance(prompt, TextPrompt) and request.truncate_prompt_tokens is None:
            return prompt.text
        return self.language.renderer.decode(ids)

    async def _add(self, prepared: PreparedGeneration, outputs: list[PromptOutputs], ids: list[str]) -> None:
        request, slices = prepared.request, Slices()
        # Prompts with the same limit share parameters.
        params_of: dict[int, Any] = {}
        for at, (output, tokens, limit) in enumerate(zip(outputs, prepared.prompts, prepared.limits, strict=True)):
            if (params := params_of.get(limit)) is None:
                # The engine must generate at least one token, even for a prompt that is only scored.
                params = params_of[limit] = await self._params(prepared, max(1, limit - len(request.resume)))
            # design 2.9
            check_continues(request, (params.eos_token_id, *params.stop_token_ids))
            ended = self.language.parsers.reasoning_ended(request, tokens) if prepared.grammar else None
            given = [*tokens, *request.resume] if request.resume else tokens
            ids += self._client.add(
                f"{request.id}-{at}", output, given, params, cache_salt=request.cache_salt, reasoning_ended=ended
            )
            await slices.rest()

    async def _params(self, prepared: PreparedGeneration, max_tokens: int) -> Any:
        """Return completed SamplingParams for one prompt or several with the same limit."""
        sampling, echo, cache = prepared.request.sampling, prepared.request.echo, self._params_cache
        if (params := cache.get(sampling, max_tokens, echo=echo)) is None:
            params = sampling_params(
                sampling,
                max_tokens,
                echo=echo,
                defaults=self._defaults,
                grammar=prepared.grammar,
                bad_words=prepared.bad_words,
            )
            await self._client.complete(params)
            cache.put(params, sampling, echo=echo)
        return params

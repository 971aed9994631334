"""Runs requests on a started engine: prepares a request, adds it prompt by prompt, turns its outputs into events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from tokka.core import Accepted, ChoiceDone, Constraint, Event, Finished, GenerateRequest, TextPrompt, Usage
from tokka.engine.generation.event_buffer import EchoReady, EventBuffer
from tokka.engine.generation.length import allowed_tokens, truncation
from tokka.engine.generation.slices import Slices
from tokka.engine.generation.token_ids import check_token_ids
from tokka.engine.grammars.loosening import compile_loosening
from tokka.engine.grammars.service import GrammarService
from tokka.engine.reading.readers import Readers, ReadingPlan
from tokka.engine.vllm.error_mapping import translate
from tokka.engine.vllm.params import is_greedy, sampling_params
from tokka.engine.vllm.parsers import Parsers
from tokka.engine.vllm.prompt_outputs import PromptOutputs
from tokka.engine.vllm.render import Renderer
from tokka.engine.vllm.vocabulary import Vocabulary
from tokka.errors import EngineDied, InvalidRequest, UnsupportedParameter

# Maximum events of one request that are passed on without a pause. Only requests with many choices bring more.
_FEW_EVENTS = 8


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
class _Prepared:
    """A validated and rendered request that the engine has not received yet."""

    request: GenerateRequest
    prompts: list[list[int]]
    # Maximum tokens per choice, for each prompt.
    limits: list[int]
    # Choices per sequence of the engine: greedy choices are generated once and copied.
    copies: int
    constraint: Constraint | None
    grammar: str | None
    bad_words: list[list[int]] | None
    reading: ReadingPlan | None


class Generations:
    """Runs requests on vLLM's AsyncLLM. `defaults`: the model's own sampling, for fields that a request omits."""

    def __init__(self, llm: Any, language: Language, limits: Limits, defaults: Mapping[str, Any]) -> None:
        self._llm = llm
        self.language = language
        self._limits = limits
        self._defaults = defaults
        self._is_closed = False

    def close(self) -> None:
        """Refuse new requests, and send the engine no more aborts."""
        self._is_closed = True

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Implement `Engine.generate`."""
        prepared = await self._prepare(request)
        prompts, n = prepared.prompts, request.sampling.n
        buffer = EventBuffer(batches=not request.stream)
        outputs = [self._outputs(prepared, at, buffer) for at in range(len(prompts))]
        reading = prepared.reading
        # design 4.3
        readers = None if reading is None else Readers(reading, lambda index: outputs[index // n].end(index))
        # design 2.6
        yield Accepted(tuple(prompts), tuple(prepared.limits))

        try:
            async with self._running(prepared, outputs):
                slices = Slices()
                left = len(prompts) * n
                while left:
                    events = await buffer.get()
                    for event in events:
                        if len(events) > _FEW_EVENTS:
                            await slices.rest()
                        if isinstance(event, EchoReady):
                            for part in outputs[event.prompt_index].prompt_parts():
                                yield part
                                await slices.rest()
                            continue
                        for read in (event,) if readers is None else readers.read(event):
                            left -= isinstance(read, ChoiceDone)
                            yield read
        except Exception as error:
            raise translate(error, prepared.constraint) from error
        reasoning_tokens = 0
        if readers is not None and reading is not None and reading.count_thoughts:
            reasoning_tokens = await asyncio.to_thread(lambda: readers.reasoning_tokens)
        # design 4.9
        yield Finished(
            Usage(
                prompt_tokens=sum(map(len, prompts)),
                completion_tokens=sum(output.completion_tokens for output in outputs),
                cached_tokens=sum(output.cached_tokens for output in outputs),
                reasoning_tokens=reasoning_tokens,
            )
        )

    async def _prepare(self, request: GenerateRequest) -> _Prepared:
        language, sampling, slices = self.language, request.sampling, Slices()
        prompts = []
        kept = truncation(request, self._limits.max_model_len)
        for prompt in request.prompts:
            prompts.append(await language.renderer.token_ids(prompt, request.tenant, kept))
            await slices.rest()
        # design 2.2
        check_token_ids(sampling, self._limits.vocab_size)
        bounds = self._limits
        limits = [
            allowed_tokens(request, len(ids), bounds.max_model_len, bounds.max_completion_tokens, bounds.default_tokens)
            for ids in prompts
        ]
        # design 2.3
        constraint = language.parsers.constraint(request)
        if sampling.thinking_token_budget is not None:
            self._check_budget(constraint)
        # design 2.5
        copies = sampling.n if is_greedy(sampling, self._defaults) else 1
        choices = len(prompts) * sampling.n // copies
        grammar = None
        if constraint is not None:
            grammar = await compile_loosening(language.grammars, constraint, request.tenant, choices)
        words = sampling.bad_words
        bad_words = await language.renderer.bad_words(words, request.tenant) if words else None
        # design 2.4
        reading = language.parsers.reading(request, prompts[0])
        # design 2.4.2
        if reading is not None and language.parsers.shows_special(reading):
            request = replace(request, sampling=replace(sampling, skip_special_tokens=False))
        return _Prepared(request, prompts, limits, copies, constraint, grammar, bad_words, reading)

    def _check_budget(self, constraint: Constraint | None) -> None:
        """Raise InvalidRequest if the engine cannot enforce a reasoning budget for this request."""
        name = "thinking_token_budget"
        config = self._llm.vllm_config.reasoning_config
        # design 2.3.3
        if config is None or not config.enabled:
            raise UnsupportedParameter(
                f"'{name}' needs a server with a --reasoning-parser for this model. Leave it out.", param=name
            )
        if constraint is not None:
            # Both restrict the next token, and together they might allow none.
            raise InvalidRequest(f"{name} cannot be combined with {constraint.param}: leave one out.", param=name)

    def _outputs(self, prepared: _Prepared, at: int, buffer: EventBuffer) -> PromptOutputs:
        request = prepared.request
        return PromptOutputs(
            at,
            prepared.prompts[at],
            request.sampling,
            buffer,
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

    @asynccontextmanager
    async def _running(self, prepared: _Prepared, outputs: list[PromptOutputs]) -> AsyncIterator[None]:
        """Run the prompts on the engine during the block. If the block ends early, abort them."""
        # design 2.7
        if self._is_closed:
            raise EngineDied
        llm, steps = self._llm, self._llm.output_processor
        # The engine needs a unique id for each prompt.
        ids = [f"{prepared.request.id}-{at}" for at in range(len(prepared.prompts))]
        try:
            await self._add(prepared, outputs, ids)
            yield
        finally:
            left = [request_id for request_id in ids if steps.forget(request_id)]
            # design 4.4
            if left and not self._is_closed and not llm.errored:
                await llm.abort(left)

    async def _add(self, prepared: _Prepared, outputs: list[PromptOutputs], ids: list[str]) -> None:
        from vllm.inputs import tokens_input

        request, slices = prepared.request, Slices()
        # Prompts with the same limit share parameters: vLLM copies the parts that it changes.
        params_of: dict[int, Any] = {}
        for request_id, output, tokens, limit in zip(ids, outputs, prepared.prompts, prepared.limits, strict=True):
            self._llm.output_processor.expect(request_id, output)
            if (params := params_of.get(limit)) is None:
                # The engine must generate at least one token, even for a prompt that is only scored.
                params = params_of[limit] = sampling_params(
                    request.sampling,
                    max(1, limit),
                    echo=request.echo,
                    defaults=self._defaults,
                    grammar=prepared.grammar,
                    bad_words=prepared.bad_words,
                )
            ended = self.language.parsers.reasoning_ended(request, tokens) if prepared.grammar else None
            prompt = tokens_input(tokens, cache_salt=request.cache_salt)
            await self._llm.add_request(request_id, prompt, params, reasoning_ended=ended)
            await slices.rest()

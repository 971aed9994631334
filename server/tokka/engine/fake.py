"""The scripted engine, for developing clients without a model and for tests of timing and faults.

Tokens are UTF-8 bytes (ids 0 to 255; 256 is the end token), so every non-ASCII character is split over tokens.
The engine answers with a fixed text, once; `ignore_eos` and `min_tokens` repeat it. `scripted_answer.py` decides when
it answers with something else. Tool calls and reasoning in its text are read like a model's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tokka import __version__
from tokka.core import (
    Accepted,
    ChatPrompt,
    Embedding,
    Event,
    GenerateRequest,
    Prompt,
    PromptEcho,
    PromptLogprobs,
    Sampling,
    TextPrompt,
    TokensPrompt,
    Usage,
)
from tokka.engine.base import Prepared, ReportPhase, Sink
from tokka.engine.generation.embedding import MOST_AT_ONCE, VectorLimits, check_dimensions
from tokka.engine.generation.length import allowed_tokens, truncation
from tokka.engine.generation.resume import check_continues, check_resume
from tokka.engine.generation.token_ids import check_token_ids
from tokka.engine.reading.forms import FORMS, READABLE
from tokka.engine.reading.readers import Readers, ReadingPlan
from tokka.engine.script import EOS, VOCAB_SIZE, Script, decode, length_of, prompt_logprobs
from tokka.engine.scripted_answer import THOUGHT_MARKS, ScriptedAnswer
from tokka.engine.scripted_steps import ScriptedSequence, StepLoop, StepModel
from tokka.engine.scripted_vectors import embedded_ids, tasks_of, vector_of
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import (
    ConfigurationError,
    EngineDied,
    InvalidRequest,
    NoChatTemplate,
    UnsupportedParameter,
)

ANSWER = (
    "Päivää! This is Tokka's scripted engine 🦌. It says the same every time, so clients can be built without a model."
)


@dataclass(frozen=True, slots=True)
class FakeOptions:
    """Options for --engine-arg. Delays are in seconds.

    A prompt that contains `die_on` ends the engine; one that contains `stall_on` freezes it. `step_s` turns on steps
    with a GPU's timing (see `scripted_steps.py`). Without it, `prefill_delay_s` and `token_delay_s` are the same for
    every request.
    """

    start_delay_s: float = 0.0
    prefill_delay_s: float = 0.0
    token_delay_s: float = 0.0
    answer: str = ANSWER
    # Tokens. 0: 4096, or 131072 with `step_s`.
    max_model_len: int = 0
    max_running: int = 256
    step_s: float = 0.0
    per_choice_s: float = 0.0
    per_prompt_token_s: float = 0.0
    step_tokens: int = 0
    kv_tokens: int = 0
    has_chat_template: bool = True
    # Format of the tool calls in its answer.
    calls: str = "hermes"
    # Separate the reasoning between <think> tags from the answer.
    thinks: bool = False
    # Call the first tool of a request, once per turn of the user, with arguments that match its schema. Also write JSON
    # that matches a schema.
    tool_calls: bool = False
    # Reason before the answer to a chat. Implies `thinks`.
    thoughts: bool = False
    # Take images. Each counts as a line of the prompt.
    images: bool = False
    # What it can do: `generate`, `embed`, or both with a comma between them.
    tasks: str = "embed,generate"
    # Numbers of a vector. Shorter vectors are its beginning.
    dimensions: int = 32
    die_on: str = ""
    stall_on: str = ""

    @property
    def reads_reasoning(self) -> bool:
        return self.thinks or self.thoughts

    @property
    def context(self) -> int:
        return self.max_model_len or (131_072 if self.step_s else 4096)

    def steps(self) -> StepModel | None:
        """Return the timing of its steps, or None without `step_s`."""
        if not self.step_s:
            return None
        return StepModel(
            step_s=self.step_s,
            per_choice_s=self.per_choice_s,
            per_prompt_token_s=self.per_prompt_token_s,
            step_tokens=self.step_tokens,
            max_running=self.max_running,
            kv_tokens=self.kv_tokens,
        )


class FakeEngine:
    """An `Engine` that answers with a fixed text."""

    def __init__(self, options: FakeOptions, max_completion_tokens: int | None = None) -> None:
        if options.calls not in READABLE:
            raise ConfigurationError(
                f"--tool-call-parser {options.calls}: the scripted engine supports only {', '.join(READABLE)}"
            )
        self._options = options
        self._tasks = tasks_of(options.tasks)
        self._vectors = VectorLimits(options.context, VOCAB_SIZE, options.dimensions, None)
        self._cap = max_completion_tokens
        self._answer = ScriptedAnswer(
            options.answer, FORMS[options.calls], calls=options.tool_calls, reasons=options.thoughts
        )
        self._running = 0
        self._steps = 0
        self._death: str | None = None
        self._stalled = False
        steps = options.steps()
        self._loop = StepLoop(steps, lambda: self._stalled) if steps else None
        # Set when the engine has died or was closed, so that running requests end.
        self._ended = asyncio.Event()

    async def start(self, report: ReportPhase) -> ModelInfo:
        report("loading weights", "the scripted engine has no weights")
        await asyncio.sleep(self._options.start_delay_s)
        return ModelInfo(
            max_model_len=self._options.context,
            vocab_size=VOCAB_SIZE,
            engine="fake",
            engine_version=__version__,
            has_chat_template=self._options.has_chat_template,
            tasks=self._tasks,
            dimensions=self._options.dimensions if "embed" in self._tasks else 0,
            max_running=self._options.max_running,
            step_tokens=self._options.step_tokens or None,
            kv_tokens=self._options.kv_tokens or None,
            takes_images=self._options.images,
            costs=self._loop.costs() if self._loop else None,
        )

    async def prepare(self, request: GenerateRequest) -> Prepared:
        if request.task == "embed":
            return await self._prepare_embedding(request)
        sampling = request.sampling
        prompts = [await self._ids_to_run(prompt, request.tenant) for prompt in request.prompts]
        if kept := truncation(request, self._options.context):
            prompts = list(map(kept.of, prompts))
        check_token_ids(sampling, VOCAB_SIZE)
        limits = [allowed_tokens(request, len(ids), self._options.context, self._cap) for ids in prompts]
        said = self._text_of(request)
        _check_budget(sampling)
        check_resume(request, limits[0], VOCAB_SIZE, is_read=self._readers(request) is not None)
        check_continues(request, (EOS, *sampling.stop_token_ids))
        return _ScriptedRequest(self, request, prompts, limits, said)

    async def _prepare_embedding(self, request: GenerateRequest) -> Prepared:
        dimensions = check_dimensions(request, self._vectors)
        prompts = await embedded_ids(request, self.tokenize, self._vectors)
        return _ScriptedEmbedding(self, prompts, dimensions)

    async def embed(self, prepared: _ScriptedEmbedding, sink: Sink) -> Usage:
        """Run prepared inputs, as `Prepared.run` says. Each takes as long as a prompt."""
        prompts = prepared.prompts
        with self._sequences((), 1, ()):
            self._obey(prompts)
            for at in range(0, len(prompts), MOST_AT_ONCE):
                await self._pause(self._options.prefill_delay_s)
                for place, ids in enumerate(prompts[at : at + MOST_AT_ONCE], at):
                    await sink.give(Embedding(place, vector_of(ids, prepared.dimensions)))
        return Usage(sum(map(len, prompts)), 0)

    async def run(self, prepared: _ScriptedRequest, sink: Sink) -> Usage:
        """Run a prepared request, as `Prepared.run` says."""
        request, prompts, sampling = prepared.request, prepared.prompts, prepared.request.sampling
        readers = self._readers(request)
        said, resumed = prepared.said, request.resume
        lengths = [length_of(sampling, limit, said, len(resumed)) for limit in prepared.limits]
        with self._sequences(prompts, sampling.n, lengths, len(resumed)) as sequences:
            self._obey(prompts)
            await self._prefill()
            completion_tokens, has_room = 0, True
            for at, (ids, limit) in enumerate(zip(prompts, prepared.limits, strict=True)):
                if request.echo:
                    await sink.give(PromptEcho(at, decode(ids), prompt_logprobs(ids, sampling.logprobs)))
                if (scored := prompt_logprobs(ids, sampling.prompt_logprobs)) is not None:
                    await sink.give(PromptLogprobs(at, scored, (0, *(1 for _ in scored[1:]))))
                scripts = [Script(at * sampling.n + i, sampling, limit, said, resumed) for i in range(sampling.n)]
                running = list(scripts)
                while running:
                    await self._token(sequences[at] if sequences else None, running[0].num_tokens + 1)
                    for event in _step(running, readers):
                        if has_room:
                            has_room = sink.take(event)
                        else:
                            await sink.give(event)
                            has_room = True
                completion_tokens += sum(script.num_tokens for script in scripts)
            thought = readers.reasoning_tokens if readers else 0
            return Usage(sum(map(len, prompts)), completion_tokens, reasoning_tokens=thought)

    async def tokenize(self, prompt: Prompt, tenant: str) -> Sequence[int]:
        # Bytes already are a sequence of token ids. Building a list from a long text would block the event loop.
        ids: Sequence[int]
        match prompt:
            case TextPrompt(text):
                ids = text.encode()
            case TokensPrompt(token_ids):
                ids = token_ids
            case ChatPrompt() if not self._options.has_chat_template:
                raise NoChatTemplate
            case ChatPrompt(messages=messages, images=images):
                said = "".join(f"{m['role']}: {m.get('content') or ''}\n" for m in messages)
                ids = (said + "<image>\n" * len(images)).encode()
        _check_ids(ids, "The prompt", "prompt")
        return ids

    async def token_texts(self, token_ids: Sequence[int], tenant: str) -> list[str]:
        return [chr(token) for token in token_ids]

    async def detokenize(self, token_ids: Sequence[int], tenant: str) -> str:
        _check_ids(token_ids, "`tokens`", "tokens")
        return decode(token_ids)

    async def _ids_to_run(self, prompt: Prompt, tenant: str) -> Sequence[int]:
        # An empty prompt becomes the end token, which begins a document.
        return await self.tokenize(prompt, tenant) or [EOS]

    async def ping(self) -> None:
        if self._stalled:
            await self._ended.wait()

    def stats(self) -> EngineStats:
        if self._loop is not None:
            return replace(self._loop.stats(), death=self._death)
        return EngineStats(running=self._running, unfinished=self._running, steps=self._steps, death=self._death)

    async def close(self) -> None:
        self._end()

    @contextlib.contextmanager
    def _sequences(
        self, prompts: Sequence[Sequence[int]], choices: int, lengths: Sequence[int], given: int = 0
    ) -> Iterator[list[ScriptedSequence]]:
        """Add the prompts, and the tokens that each choice already has, to the engine's steps, if it has any."""
        sequences: list[ScriptedSequence] = []
        self._running += 1
        with contextlib.ExitStack() as stack:
            stack.callback(self._leave)
            if loop := self._loop:
                pairs = zip(prompts, lengths, strict=True)
                sequences = [ScriptedSequence(len(ids), choices, n, given) for ids, n in pairs]
                for sequence in sequences:
                    loop.add(sequence)
                    stack.callback(loop.remove, sequence)
            yield sequences

    def _leave(self) -> None:
        self._running -= 1

    async def _prefill(self) -> None:
        if self._loop is None:
            await self._pause(self._options.prefill_delay_s)

    async def _token(self, sequence: ScriptedSequence | None, number: int) -> None:
        """Return when the choices of a prompt have `number` tokens. Raises EngineDied."""
        if sequence is None:
            await self._pause(self._options.token_delay_s)
            return
        await sequence.token(number)
        if self._ended.is_set():
            raise EngineDied

    def _end(self) -> None:
        self._ended.set()
        if self._loop is not None:
            self._loop.end()

    def _readers(self, request: GenerateRequest) -> Readers | None:
        prompt = request.prompts[0]
        if not isinstance(prompt, ChatPrompt) or (prompt.tools is None and not self._options.reads_reasoning):
            return None
        return Readers(
            ReadingPlan(
                tools=prompt.tools,
                form=FORMS[self._options.calls],
                thoughts=THOUGHT_MARKS if self._options.reads_reasoning else None,
                count_thoughts=_count_reasoning if self._options.reads_reasoning else None,
            )
        )

    def _text_of(self, request: GenerateRequest) -> bytes:
        """Return the text of every choice. Raises UnsupportedParameter for a constraint that it cannot match."""
        return self._answer.text(request)

    def _obey(self, prompts: Sequence[Sequence[int]]) -> None:
        """Die or freeze if a prompt contains `die_on` or `stall_on`."""
        texts = [decode(ids) for ids in prompts]
        if self._options.die_on and any(self._options.die_on in text for text in texts):
            self._death = "a prompt contained the text of die_on"
            self._end()
        if self._options.stall_on and any(self._options.stall_on in text for text in texts):
            self._stalled = True

    async def _pause(self, delay_s: float) -> None:
        """Wait for one step. Raises EngineDied if the engine ends meanwhile, as a real engine does."""
        if self._stalled:
            await self._ended.wait()
        elif delay_s == 0:
            await asyncio.sleep(0)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._ended.wait()
        if self._ended.is_set():
            raise EngineDied
        self._steps += 1


@dataclass(frozen=True, slots=True)
class _ScriptedRequest:
    """A checked request. Implements `Prepared`. `said`: the text of every choice."""

    engine: FakeEngine
    request: GenerateRequest
    prompts: list[Sequence[int]]
    # Maximum tokens per choice, for each prompt.
    limits: list[int]
    said: bytes

    @property
    def accepted(self) -> Accepted:
        return Accepted(tuple(self.prompts), tuple(self.limits))

    async def run(self, sink: Sink) -> Usage:
        return await self.engine.run(self, sink)


@dataclass(frozen=True, slots=True)
class _ScriptedEmbedding:
    """Checked inputs to embed. Implements `Prepared`."""

    engine: FakeEngine
    prompts: list[Sequence[int]]
    dimensions: int

    @property
    def accepted(self) -> Accepted:
        return Accepted(tuple(self.prompts), dimensions=self.dimensions)

    async def run(self, sink: Sink) -> Usage:
        return await self.engine.embed(self, sink)


def _step(running: list[Script], readers: Readers | None) -> Iterator[Event]:
    """Give each running choice its next token. Remove ended choices from `running`."""
    for script in list(running):
        delta, done = script.step()
        if done is not None:
            running.remove(script)
        for event in (delta, done):
            if event is not None:
                yield from (event,) if readers is None else readers.read(event)


def _count_reasoning(token_ids: list[int], text: str, is_open: bool) -> int:
    return len(text.encode())


def _check_ids(token_ids: Sequence[int], what: str, param: str) -> None:
    if max(token_ids, default=0) >= VOCAB_SIZE or min(token_ids, default=0) < 0:
        raise InvalidRequest(
            f"{what} holds a token id outside the vocabulary; ids are at least 0 and less than {VOCAB_SIZE}.",
            param=param,
        )


def _check_budget(sampling: Sampling) -> None:
    if sampling.thinking_token_budget is not None and not sampling.is_budget_optional:
        raise UnsupportedParameter(
            "'thinking_token_budget' needs a real engine; the scripted engine has a fixed text.",
            param="thinking_token_budget",
        )

"""A scripted engine: a real option for developing clients without a model, and the tests' engine for timing and faults.

Tokens are UTF-8 bytes (ids 0 to 255, 256 is the end token), so every non-ASCII character is split over tokens.
It answers with a fixed text, once; with `ignore_eos` or `min_tokens` it starts over. Of several choices it says the
first; other constraints it cannot follow and refuses. Calls and thoughts in its text are read as a model's are.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from tokka import __version__
from tokka.core import (
    Accepted,
    ChatPrompt,
    ChoiceDone,
    Constraint,
    Event,
    Finished,
    FinishReason,
    GenerateRequest,
    Prompt,
    PromptEcho,
    PromptLogprobs,
    Sampling,
    TextDelta,
    TextPrompt,
    TokenLogprob,
    TokensPrompt,
    Usage,
)
from tokka.engine.base import ReportPhase
from tokka.engine.choice import Choice
from tokka.engine.length import allowed_tokens, truncation
from tokka.engine.reading.calls import FORMS, READABLE
from tokka.engine.reading.readers import Readers, Reading
from tokka.engine.reading.thinking import Thoughts
from tokka.engine.sampling import check_token_ids
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import (
    ConfigurationError,
    EngineDied,
    InvalidRequest,
    NoChatTemplate,
    UnsupportedParameter,
)

EOS = 256
VOCAB_SIZE = 257
ANSWER = (
    "Päivää! This is Tokka's scripted engine 🦌. It says the same every time, so clients can be built without a model."
)


@dataclass(frozen=True, slots=True)
class FakeOptions:
    """Settable with --engine-arg; delays in seconds. A prompt that holds `die_on` or `stall_on` ends or freezes it."""

    start_delay_s: float = 0.0
    prefill_delay_s: float = 0.0
    token_delay_s: float = 0.0
    answer: str = ANSWER
    max_model_len: int = 4096
    max_running: int = 256
    has_chat_template: bool = True
    # How calls in its answer are written.
    calls: str = "hermes"
    # Thoughts in its answer, between <think> tags, are told apart.
    thinks: bool = False
    die_on: str = ""
    stall_on: str = ""


class FakeEngine:
    def __init__(self, options: FakeOptions, max_completion_tokens: int | None = None) -> None:
        if options.calls not in READABLE:
            raise ConfigurationError(
                f"--tool-call-parser {options.calls}: the scripted engine reads {', '.join(READABLE)}"
            )
        self._options = options
        self._cap = max_completion_tokens
        self._script = options.answer.encode()
        self._running = 0
        self._steps = 0
        self._death: str | None = None
        self._stalled = False
        # Set when nothing that runs can go on: the engine has died or was closed.
        self._ended = asyncio.Event()

    async def start(self, report: ReportPhase) -> ModelInfo:
        report("loading weights", "the scripted engine has none")
        await asyncio.sleep(self._options.start_delay_s)
        return ModelInfo(
            max_model_len=self._options.max_model_len,
            vocab_size=VOCAB_SIZE,
            engine="fake",
            engine_version=__version__,
            has_chat_template=self._options.has_chat_template,
            max_running=self._options.max_running,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        sampling = request.sampling
        prompts = [await self._ids_to_run(prompt, request.tenant) for prompt in request.prompts]
        if kept := truncation(request, self._options.max_model_len):
            prompts = list(map(kept.of, prompts))
        check_token_ids(sampling, VOCAB_SIZE)
        limits = [allowed_tokens(request, len(ids), self._options.max_model_len, self._cap) for ids in prompts]
        said = self._script_within(sampling.constraint)
        _check_prompt(request)
        _check_budget(sampling)
        readers = self._readers(request)
        yield Accepted(tuple(prompts), tuple(limits))
        self._running += 1
        try:
            self._obey(prompts)
            await self._pause(self._options.prefill_delay_s)
            completion_tokens = 0
            for at, (ids, limit) in enumerate(zip(prompts, limits, strict=True)):
                if request.echo:
                    yield PromptEcho(at, _decode(ids), _prompt_logprobs(ids, sampling.logprobs))
                if (scored := _prompt_logprobs(ids, sampling.prompt_logprobs)) is not None:
                    yield PromptLogprobs(at, scored, (0, *(1 for _ in scored[1:])))
                running = [_Script(at * sampling.n + i, sampling, limit, said) for i in range(sampling.n)]
                while running:
                    await self._pause(self._options.token_delay_s)
                    for script in list(running):
                        delta, done = script.step()
                        if done is not None:
                            running.remove(script)
                            completion_tokens += script.num_tokens
                        if readers is not None:
                            for event in readers.read_step(delta, done):
                                yield event
                            continue
                        if delta is not None:
                            yield delta
                        if done is not None:
                            yield done
            thought = readers.reasoning_tokens if readers else 0
            yield Finished(Usage(sum(map(len, prompts)), completion_tokens, reasoning_tokens=thought))
        finally:
            self._running -= 1

    async def tokenize(self, prompt: Prompt, tenant: str) -> Sequence[int]:
        # Bytes are a sequence of token ids already: a list of a long text would hold the event loop.
        ids: Sequence[int]
        match prompt:
            case TextPrompt(text):
                ids = text.encode()
            case TokensPrompt(token_ids):
                ids = token_ids
            case ChatPrompt() if not self._options.has_chat_template:
                raise NoChatTemplate
            case ChatPrompt(messages=messages):
                ids = "".join(f"{m['role']}: {m.get('content') or ''}\n" for m in messages).encode()
        if max(ids, default=0) >= VOCAB_SIZE or min(ids, default=0) < 0:
            raise InvalidRequest(f"The prompt holds a token id outside the vocabulary of {VOCAB_SIZE}.", param="prompt")
        return ids

    async def token_texts(self, token_ids: Sequence[int], tenant: str) -> list[str]:
        return [chr(token) for token in token_ids]

    async def detokenize(self, token_ids: Sequence[int], tenant: str) -> str:
        if max(token_ids, default=0) >= VOCAB_SIZE or min(token_ids, default=0) < 0:
            raise InvalidRequest(f"tokens holds an id outside the vocabulary of {VOCAB_SIZE}.", param="tokens")
        return _decode(token_ids)

    async def _ids_to_run(self, prompt: Prompt, tenant: str) -> Sequence[int]:
        # Nothing said: the beginning of a document.
        return await self.tokenize(prompt, tenant) or [EOS]

    async def ping(self) -> None:
        if self._stalled:
            await self._ended.wait()

    def stats(self) -> EngineStats:
        return EngineStats(running=self._running, unfinished=self._running, steps=self._steps, death=self._death)

    async def close(self) -> None:
        self._ended.set()

    def _readers(self, request: GenerateRequest) -> Readers | None:
        prompt = request.prompts[0]
        if not isinstance(prompt, ChatPrompt) or (prompt.tools is None and not self._options.thinks):
            return None
        return Readers(
            Reading(
                tools=prompt.tools,
                form=FORMS[self._options.calls],
                thoughts=Thoughts("<think>", "</think>", begins=False) if self._options.thinks else None,
                count_thoughts=(lambda ids, text, is_open: len(text.encode())) if self._options.thinks else None,
            )
        )

    def _script_within(self, constraint: Constraint | None) -> bytes:
        if constraint is None:
            return self._script
        if constraint.kind != "choice":
            raise UnsupportedParameter(
                f"'{constraint.param}' needs a real engine: the scripted one follows no {constraint.kind}.",
                param=constraint.param,
            )
        choices: list[str] = json.loads(constraint.text)
        return choices[0].encode()

    def _obey(self, prompts: Sequence[Sequence[int]]) -> None:
        """Die or freeze if a prompt says so."""
        texts = [_decode(ids) for ids in prompts]
        if self._options.die_on and any(self._options.die_on in text for text in texts):
            self._death = "a prompt said so"
            self._ended.set()
        if self._options.stall_on and any(self._options.stall_on in text for text in texts):
            self._stalled = True

    async def _pause(self, delay_s: float) -> None:
        """Take the time a step takes; as with a real engine, its end is the end of what it works on."""
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


class _Script:
    """What one choice is given, a token a step."""

    def __init__(self, index: int, sampling: Sampling, limit: int, script: bytes) -> None:
        self._index = index
        self._sampling = sampling
        self._limit = limit
        self._script = script
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._choice = Choice(
            index, sampling, lambda token: "" if token == EOS else self._decoder.decode(bytes([token]))
        )

    @property
    def num_tokens(self) -> int:
        return self._choice.num_tokens

    def step(self) -> tuple[TextDelta | None, ChoiceDone | None]:
        if self._limit == 0:
            scored = self._sampling.logprobs is not None
            return None, ChoiceDone(self._index, "length", None, 0.0 if scored else None)
        token = self._next_token()
        logprob = _logprob(token, self._sampling.logprobs, self._sampling.logprob_token_ids)
        reason, end_token = self._end_with(token)
        return self._choice.take((token,), reason, end_token, None if logprob is None else (logprob,))

    def _end_with(self, token: int) -> tuple[FinishReason | None, int | None]:
        """Return why this token, the next one, ends the choice, and its id if the client named it."""
        may_stop = self.num_tokens >= self._sampling.min_tokens
        if token == EOS:
            return "stop", None
        if token in self._sampling.stop_token_ids and may_stop:
            return "stop", token
        return ("length" if self.num_tokens + 1 == self._limit else None), None

    def _next_token(self) -> int:
        at = self.num_tokens % (len(self._script) + 1)
        if at < len(self._script):
            return self._script[at]
        wants_more = self._sampling.ignore_eos or self.num_tokens < self._sampling.min_tokens
        return ord(" ") if wants_more else EOS


def _check_prompt(request: GenerateRequest) -> None:
    prompt = request.prompts[0]
    if isinstance(prompt, ChatPrompt) and prompt.tools and prompt.tools.answer is not None:
        raise UnsupportedParameter(
            f"'{prompt.tools.answer_param}' beside tools needs a real engine: the scripted one follows no schema.",
            param=prompt.tools.answer_param,
        )


def _check_budget(sampling: Sampling) -> None:
    if sampling.thinking_token_budget is not None:
        raise UnsupportedParameter(
            "'thinking_token_budget' needs a real engine: the scripted one says what it says.",
            param="thinking_token_budget",
        )


def _decode(token_ids: Sequence[int]) -> str:
    return bytes(token for token in token_ids if token < EOS).decode(errors="replace")


def _logprob(token: int, alternatives: int | None, listed: Sequence[int] = ()) -> TokenLogprob | None:
    if alternatives is None:
        return None
    raw = bytes([token]) if token < EOS else b""
    top = tuple(
        TokenLogprob(other, chr(other) if other < 128 else "\ufffd", bytes([other % EOS]), -0.25 * (rank + 1))
        for rank, other in enumerate(listed or [(token + k) % EOS for k in range(alternatives)])
    )
    return TokenLogprob(token, raw.decode(errors="replace"), raw, -0.25, top)


def _prompt_logprobs(ids: Sequence[int], alternatives: int | None) -> tuple[TokenLogprob, ...] | None:
    if alternatives is None:
        return None
    first = TokenLogprob(ids[0], _decode(ids[:1]), bytes(token for token in ids[:1] if token < EOS), None)
    return (first, *(scored for token in ids[1:] if (scored := _logprob(token, alternatives))))

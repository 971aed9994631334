"""POST /v1/completions: the request, and the encoder from events to chunks."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self, assert_never

from pydantic import Field, PlainValidator, model_validator

from tokka.core import (
    Accepted,
    ChoiceDone,
    Constraint,
    Embedding,
    Event,
    Finished,
    GenerateRequest,
    Prompt,
    PromptEcho,
    PromptLogprobs,
    ReasoningDelta,
    TextDelta,
    TextPrompt,
    TokenLogprob,
    ToolCallDelta,
)
from tokka.protocol.chunks import AnswerForm, Chunks, Fold, StreamEncoder, fold_ending
from tokka.protocol.common import (
    Unsupported,
    invalid,
    new_id,
    now_s,
    prompt_logprobs_list,
    token_text,
)
from tokka.protocol.constraint import ResponseFormat, text_constraint
from tokka.protocol.folding import JsonItems, JsonList, JsonObject, JsonText, Piece, RawJson
from tokka.protocol.generation import MAX_CHOICES, GenerationFields
from tokka.protocol.prompts import prompts_of, wire_prompts
from tokka.protocol.vllm_fields import COMPLETION_FIELDS, Neutral

ID_PREFIX = "cmpl-"
# Default maximum tokens of a choice, as at OpenAI. Small, so that a runaway base model ends soon.
DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 1024


def _prompts(value: Any) -> list[Prompt]:
    # No prompt means the beginning of a document.
    return [TextPrompt(value or "")] if value in (None, "") else prompts_of(value, MAX_PROMPTS)


class CompletionRequest(GenerationFields):
    """The body of POST /v1/completions."""

    neutral: ClassVar[Mapping[str, Neutral]] = COMPLETION_FIELDS

    prompt: Annotated[
        list[Prompt], PlainValidator(_prompts, json_schema_input_type=wire_prompts(MAX_PROMPTS) | None)
    ] = Field(
        description="A string, a list of strings, a list of token ids or a list of token id lists. "
        "Null or empty text: the beginning of a document."
    )
    best_of: int | None = Field(
        None, ge=1, le=20, description="Choices to generate, of which the n most likely are returned."
    )
    logprobs: int | None = Field(None, ge=0, le=5, description="Alternatives to report for each token.")
    response_format: ResponseFormat | None = Field(None, description="The format of every choice's text.")
    suffix: Unsupported = None

    @model_validator(mode="after")
    def _completion_consistent(self) -> Self:
        n = self.n or 1
        if self.best_of is not None and self.best_of < n:
            raise invalid(f"best_of ({self.best_of}) must be at least n ({n})", "best_of")
        if self.best_of is not None and self.best_of > n and self.stream:
            raise invalid("best_of above n cannot be streamed: send stream: false", "best_of")
        if self.logprob_token_ids and self.logprobs is None:
            raise invalid("logprob_token_ids needs logprobs", "logprob_token_ids")
        if self.num_choices > MAX_CHOICES:
            raise invalid(
                f"prompts times choices may be at most {MAX_CHOICES}: send fewer prompts, or ask for fewer choices",
                "n" if n > 1 else "prompt",
            )
        return self

    @cached_property
    def constraint(self) -> Constraint | None:
        return text_constraint(self.response_format, self.structured_outputs)

    @property
    def candidates(self) -> int:
        """Return the choices to generate for each prompt, of which `n` are returned."""
        return max(self.n or 1, self.best_of or 1)

    @property
    def num_choices(self) -> int:
        return len(self.prompt) * self.candidates

    def answer_form(self) -> AnswerForm:
        return self.form(candidates=self.candidates, alternatives=self.logprobs)

    def to_core(self) -> GenerateRequest:
        ranks = self.candidates > (self.n or 1)
        return GenerateRequest(
            id=new_id(ID_PREFIX),
            model=self.model,
            prompts=tuple(self.prompt),
            sampling=self.sampling(
                n=self.candidates,
                max_tokens=self.max_tokens,
                default_max_tokens=DEFAULT_MAX_TOKENS,
                logprobs=0 if self.logprobs is None and ranks else self.logprobs,
            ),
            prompt_param="prompt",
            limit_param="max_tokens",
            echo=bool(self.echo),
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            truncation_side=self.truncation_side or "left",
            timeout_s=self.timeout,
            priority=self.priority or 0,
            cache_salt=self.cache_salt,
        )


class CompletionEncoder(StreamEncoder):
    """Encode events as chunks. `CompletionFold` makes the plain response of the same chunks."""

    def __init__(self, form: AnswerForm, request_id: str, fingerprint: str) -> None:
        head = {
            "id": form.id_of(ID_PREFIX, request_id),
            "object": "text_completion",
            "created": now_s(),
            "model": form.model,
            "system_fingerprint": fingerprint,
        }
        self._n = form.choices
        self._candidates = form.candidates
        self._is_scored = form.alternatives is not None
        self._names_ids = form.names_ids
        super().__init__(Chunks(form, head), scored=self._is_scored)
        # Text offsets by choice, and offsets of echoed prompts by prompt.
        self._offsets: dict[int, _TextOffset] = {}
        self._echo_offsets: dict[int, _TextOffset] = {}
        self._prompt_token_ids: tuple[Any, ...] = ()
        # Choices that have a chunk already.
        self._begun: set[int] = set()
        self._tokens_of: dict[int, int] = {}
        # Mean logprob per token of each finished candidate, for best_of.
        self._scores: dict[int, float] = {}

    def feed(self, event: Event) -> Iterable[dict[str, Any]]:
        match event:
            case TextDelta():
                return self._delta(event)
            case ChoiceDone():
                tokens = self._tokens_of.get(event.index, 0)
                # A choice cut off by its deadline has no score, and ranks last.
                total = float("-inf") if event.cumulative_logprob is None else event.cumulative_logprob
                self._scores[event.index] = total / max(1, tokens)
                return [self._chunks.of(self._ended(event))]
            case Accepted(prompt_token_ids):
                self._prompt_token_ids = prompt_token_ids
                self._chunks.begin(prompt_token_ids)
                return []
            case Finished(usage):
                return self._chunks.end(usage)
            case PromptEcho():
                return self._echo(event)
            case PromptLogprobs():
                return self._prompt_scores(event)
            case ReasoningDelta() | ToolCallDelta() | Embedding():
                # Only conversations and embeddings have these events.
                return []
            case _:
                assert_never(event)

    def fold(self) -> Fold:
        return CompletionFold(self._is_scored, lambda indices: _best(indices, self._scores, self._n, self._candidates))

    def _echo(self, event: PromptEcho) -> Iterator[dict[str, Any]]:
        """Yield the same part of the prompt for each of its choices. It is encoded only once."""
        first = event.prompt_index * self._candidates
        text, logprobs = RawJson(event.text), None
        if self._is_scored and event.logprobs:
            offset = self._echo_offsets.setdefault(event.prompt_index, _TextOffset())
            logprobs = {name: RawJson(values) for name, values in self._logprobs(offset, event.logprobs).items()}
        for index in range(first, first + self._candidates):
            yield self._chunks.of({**self._text_choice(index, ""), "text": text, "logprobs": logprobs})

    def _prompt_scores(self, event: PromptLogprobs) -> Iterator[dict[str, Any]]:
        """Yield the same logprobs for each choice of the prompt. They are encoded only once."""
        first = event.prompt_index * self._candidates
        scores = RawJson(prompt_logprobs_list(event))
        for index in range(first, first + self._candidates):
            yield self._chunks.of({**self._text_choice(index, ""), "prompt_logprobs": scores})

    def _delta(self, event: TextDelta) -> list[dict[str, Any]]:
        self._tokens_of[event.index] = self._tokens_of.get(event.index, 0) + len(event.token_ids)
        if not self._chunks.count(event):
            return []
        return [self._chunks.of_delta(self._choice(event.index, event.text, event.logprobs), event)]

    def _choice(self, index: int, text: str, logprobs: tuple[TokenLogprob, ...] | None) -> dict[str, Any]:
        choice = self._text_choice(index, text)
        if logprobs and self._is_scored:
            choice["logprobs"] = self._logprobs(self._offset(index), logprobs)
        return choice

    def _logprobs(self, offset: _TextOffset, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        return _logprobs_object(offset, tokens, as_ids=self._names_ids)

    def _offset(self, index: int) -> _TextOffset:
        """Return the text offset of a choice, which continues after its echoed prompt."""
        if (offset := self._offsets.get(index)) is None:
            echoed = self._echo_offsets.get(index // self._candidates)
            offset = self._offsets[index] = _TextOffset() if echoed is None else echoed.copy()
        return offset

    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        if self._chunks.shows_token_ids:
            is_first = index not in self._begun
            self._begun.add(index)
            own = self._prompt_token_ids[index // self._candidates]
            choice["prompt_token_ids"] = list(own) if is_first else None
        return choice

    def _ended(self, event: ChoiceDone) -> dict[str, Any]:
        choice = self._choice(event.index, "", None)
        return choice | {"finish_reason": event.finish_reason, "stop_reason": event.stop_reason}


def _logprobs_object(offset: _TextOffset, tokens: tuple[TokenLogprob, ...], *, as_ids: bool) -> dict[str, Any]:
    return {
        "tokens": [token_text(token, "bytes:", as_id=as_ids) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token, as_ids) for token in tokens],
        "text_offset": [offset.advance(token) for token in tokens],
    }


class _TextOffset:
    """The place in the returned text where each token begins, in characters. A character may span tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chars = 0

    def copy(self) -> _TextOffset:
        same = _TextOffset()
        same._decoder.setstate(self._decoder.getstate())
        same._chars = self._chars
        return same

    def advance(self, token: TokenLogprob) -> int:
        at = self._chars
        self._chars += len(self._decoder.decode(token.bytes))
        return at


def _top(token: TokenLogprob, as_ids: bool) -> dict[str, float | None] | None:
    """Return the logprobs of the token and its alternatives by text; None for the first token of a prompt."""
    if token.logprob is None:
        return None
    return {token_text(top, "bytes:", as_id=as_ids): top.logprob for top in (*token.top, token)}


class CompletionFold(Fold):
    """Fold a stream of chunks into a text_completion object with the choices that `select` keeps."""

    def __init__(self, logprobs: bool, select: Callable[[list[int]], list[int]]) -> None:
        self._logprobs = logprobs
        self._select = select
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        self._answer = self._answer or dict(chunk)
        self._answer["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            index = choice["index"]
            if (folded := self._choices.get(index)) is None:
                folded = self._choices[index] = _empty_choice(self._logprobs)
            _fold_choice(folded, choice)

    def pieces(self) -> list[Piece]:
        kept = enumerate(self._select(sorted(self._choices)))
        choices = (_finished_choice(self._choices[index], place) for place, index in kept)
        return JsonObject({**self._answer, "choices": JsonItems(choices)}).pieces()


def _best(indices: list[int], scores: dict[int, float], n: int, candidates: int) -> list[int]:
    kept: list[int] = []
    for first in range(0, len(indices), candidates):
        group = indices[first : first + candidates]
        kept += sorted(group, key=lambda index: -scores[index])[:n] if n < candidates else group
    return kept


def _empty_choice(logprobs: bool) -> dict[str, Any]:
    scores = None
    if logprobs:
        scores = {name: JsonList() for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    ending = {"finish_reason": None, "stop_reason": None, "token_ids": None}
    # vLLM's clients read these without checking that they are present.
    of_prompt = {"prompt_token_ids": None, "prompt_logprobs": None}
    return {"index": 0, "text": JsonText(), "logprobs": scores, **ending, **of_prompt}


def _fold_choice(folded: dict[str, Any], choice: dict[str, Any]) -> None:
    folded["text"].add(choice["text"])
    if logprobs := choice["logprobs"]:
        for name, values in logprobs.items():
            folded["logprobs"][name].extend(values)
    fold_ending(folded, choice)
    if "prompt_logprobs" in choice:
        folded["prompt_logprobs"] = folded["prompt_logprobs"] or JsonList()
        folded["prompt_logprobs"].extend(choice["prompt_logprobs"])
    if choice.get("prompt_token_ids"):
        folded["prompt_token_ids"] = choice["prompt_token_ids"]


def _finished_choice(folded: dict[str, Any], place: int) -> JsonObject:
    scores = folded["logprobs"]
    return JsonObject({**folded, "index": place, "logprobs": None if scores is None else JsonObject(scores)})

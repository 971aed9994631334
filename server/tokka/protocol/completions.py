"""POST /v1/completions: the request, and the encoder from events to chunks."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Annotated, Any, Self, assert_never

from pydantic import Field, PlainValidator, model_validator

from tokka.core import (
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    GenerateRequest,
    Prompt,
    PromptEcho,
    ReasoningDelta,
    TextDelta,
    TextPrompt,
    TokenLogprob,
    TokensPrompt,
    ToolCallDelta,
)
from tokka.protocol.chunks import Chunks, StreamEncoder, fold_ending
from tokka.protocol.common import (
    MAX_TEXT_CHARS,
    TokenId,
    Unsupported,
    invalid,
    new_id,
    now_s,
    token_text,
)
from tokka.protocol.generation import MAX_CHOICES, GenerationFields

# What OpenAI generates when nothing is said. Small, so that nobody waits for a runaway base model.
DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 1024
MAX_PROMPT_TOKENS = 8 * 1024 * 1024


def _prompts(value: Any) -> list[Prompt]:
    """Take one of the four forms of a prompt; errors name the place."""
    if value is None or isinstance(value, str):
        # Nothing said: the beginning of a document.
        return [_text(value or "", "")]
    if not isinstance(value, list):
        raise invalid("Input should be a string, a list of strings, a list of token ids or a list of such lists")
    if not value:
        raise invalid("The prompt is empty: send at least one token")
    if _is_token(value[0]):
        return [_tokens(value, "")]
    if len(value) > MAX_PROMPTS:
        raise invalid(f"At most {MAX_PROMPTS} prompts are allowed; got {len(value)}")
    prompts: list[Prompt] = []
    for at, item in enumerate(value):
        if isinstance(item, str):
            prompts.append(_text(item, f"[{at}]"))
        elif isinstance(item, list):
            prompts.append(_tokens(item, f"[{at}]"))
        else:
            raise invalid("Input should be a string or a list of token ids", f"[{at}]")
        if type(prompts[-1]) is not type(prompts[0]):
            raise invalid("Strings and token ids cannot be mixed in one prompt list", f"[{at}]")
    return prompts


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(text: str, at: str) -> TextPrompt:
    if len(text) > MAX_TEXT_CHARS:
        raise invalid(f"A prompt has at most {MAX_TEXT_CHARS} characters", at)
    return TextPrompt(text)


def _tokens(ids: list[Any], at: str) -> TokensPrompt:
    if not ids:
        raise invalid("The prompt is empty: send at least one token", at)
    for place, token in enumerate(ids):
        if not _is_token(token) or not 0 <= token < 2**31:
            raise invalid("Input should be a token id: a whole number from 0", f"{at}[{place}]")
    return TokensPrompt(tuple(ids))


_PromptText = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
_PromptTokens = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]
_WirePrompt = (
    _PromptText
    | Annotated[list[_PromptText], Field(min_length=1, max_length=MAX_PROMPTS)]
    | _PromptTokens
    | Annotated[list[_PromptTokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    | None
)


class CompletionRequest(GenerationFields):
    prompt: Annotated[list[Prompt], PlainValidator(_prompts, json_schema_input_type=_WirePrompt)] = Field(
        description="A string, a list of strings, a list of token ids or a list of such lists. "
        "Null or empty text: the beginning of a document."
    )
    best_of: int | None = Field(None, ge=1, le=20, description="Generate this many, return the n most likely.")
    logprobs: int | None = Field(None, ge=0, le=5, description="Report this many alternatives for each token.")
    suffix: Unsupported = None

    @model_validator(mode="after")
    def _completion_consistent(self) -> Self:
        n = self.n or 1
        if self.best_of is not None and self.best_of < n:
            raise invalid(f"best_of ({self.best_of}) must be at least n ({n})", "best_of")
        if self.best_of is not None and self.best_of > n and self.stream:
            raise invalid("best_of above n cannot be streamed: the best is known at the end", "best_of")
        if len(self.prompt) * self.candidates > MAX_CHOICES:
            raise invalid(f"prompts times choices may be at most {MAX_CHOICES}", "n" if n > 1 else "prompt")
        return self

    @property
    def candidates(self) -> int:
        """Choices to generate for each prompt, of which `n` are returned."""
        return max(self.n or 1, self.best_of or 1)

    def to_core(self) -> GenerateRequest:
        ranks = self.candidates > (self.n or 1)
        return GenerateRequest(
            id=new_id("cmpl-"),
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
            timeout_s=self.timeout,
            priority=self.priority or 0,
            cache_salt=self.cache_salt,
        )


class CompletionEncoder(StreamEncoder):
    """Events in, chunks out. The plain answer is `fold_completion` over the same chunks."""

    def __init__(self, request: CompletionRequest, request_id: str, fingerprint: str) -> None:
        head = {
            "id": request_id,
            "object": "text_completion",
            "created": now_s(),
            "model": request.model,
            "system_fingerprint": fingerprint,
        }
        self._n = request.n or 1
        self._candidates = request.candidates
        self._alternatives = request.logprobs
        super().__init__(Chunks(request, head), scored=self._alternatives is not None)
        self._offsets: dict[int, _TextOffset] = {}
        self._prompt_token_ids: tuple[Any, ...] = ()
        self._tokens_of: dict[int, int] = {}
        # Mean logprob per token of each finished candidate, for best_of.
        self._scores: dict[int, float] = {}

    def feed(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case TextDelta():
                return self._delta(event)
            case ChoiceDone():
                tokens = self._tokens_of.get(event.index, 0)
                # Cut off by its deadline, it was never scored: the worst.
                total = float("-inf") if event.cumulative_logprob is None else event.cumulative_logprob
                self._scores[event.index] = total / max(1, tokens)
                return [self._chunks.of(self._ended(event))]
            case Accepted(prompt_token_ids):
                self._prompt_token_ids = prompt_token_ids
                self._chunks.begin(prompt_token_ids)
                return []
            case Finished(usage):
                return self._chunks.end(usage)
            case PromptEcho(prompt_index, text, logprobs):
                first = prompt_index * self._candidates
                choices = [self._choice(first + i, text, logprobs) for i in range(self._candidates)]
                return [self._chunks.of(choice) for choice in choices]
            case ReasoningDelta() | ToolCallDelta():
                # Of conversations only.
                return []
            case _:
                assert_never(event)

    def fold(self, chunks: list[dict[str, Any]]) -> dict[str, Any]:
        return fold_completion(
            chunks,
            self._alternatives is not None,
            lambda indices: _best(indices, self._scores, self._n, self._candidates),
        )

    def _delta(self, event: TextDelta) -> list[dict[str, Any]]:
        self._tokens_of[event.index] = self._tokens_of.get(event.index, 0) + len(event.token_ids)
        if not self._chunks.count(event):
            return []
        return [self._chunks.of_delta(self._choice(event.index, event.text, event.logprobs), event)]

    def _choice(self, index: int, text: str, logprobs: tuple[TokenLogprob, ...] | None) -> dict[str, Any]:
        choice = self._text_choice(index, text)
        if logprobs:
            choice["logprobs"] = self._logprobs_object(index, logprobs)
        return choice

    def _text_choice(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _ended(self, event: ChoiceDone) -> dict[str, Any]:
        choice = self._choice(event.index, "", None)
        choice |= {"finish_reason": event.finish_reason, "stop_reason": event.stop_reason}
        if self._chunks.shows_token_ids:
            choice["prompt_token_ids"] = list(self._prompt_token_ids[event.index // self._candidates])
        return choice

    def _logprobs_object(self, index: int, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        if self._alternatives is None:
            return None
        offset = self._offsets.setdefault(index, _TextOffset())
        return {
            "tokens": [token_text(token, "bytes:") for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_top(token) for token in tokens],
            "text_offset": [offset.advance(token) for token in tokens],
        }


class _TextOffset:
    """Where in the returned text each token begins, in characters, also when a character spans tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._chars = 0

    def advance(self, token: TokenLogprob) -> int:
        at = self._chars
        self._chars += len(self._decoder.decode(token.bytes))
        return at


def _top(token: TokenLogprob) -> dict[str, float | None] | None:
    """The alternatives by text, the token itself among them; None where nothing was predicted (a prompt's first)."""
    if token.logprob is None:
        return None
    return {token_text(top, "bytes:"): top.logprob for top in (*token.top, token)}


def fold_completion(
    chunks: list[dict[str, Any]], logprobs: bool, select: Callable[[list[int]], list[int]]
) -> dict[str, Any]:
    """Return the text_completion object that a stream of chunks adds up to, with the selected choices."""
    folded: dict[int, dict[str, Any]] = {}
    answer: dict[str, Any] = {}
    for chunk in chunks:
        answer = answer or {**chunk, "choices": []}
        answer["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            _fold_choice(folded.setdefault(choice["index"], _empty_choice(logprobs)), choice)
    kept = select(sorted(folded))
    for index in kept:
        folded[index]["text"] = "".join(folded[index]["text"])
    answer["choices"] = [{**folded[index], "index": place} for place, index in enumerate(kept)]
    return answer


def _best(indices: list[int], scores: dict[int, float], n: int, candidates: int) -> list[int]:
    kept: list[int] = []
    for first in range(0, len(indices), candidates):
        group = indices[first : first + candidates]
        kept += sorted(group, key=lambda index: -scores[index])[:n] if n < candidates else group
    return kept


def _empty_choice(logprobs: bool) -> dict[str, Any]:
    scores: dict[str, Any] | None = None
    if logprobs:
        scores = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    return {"index": 0, "text": [], "logprobs": scores, "finish_reason": None, "stop_reason": None}


def _fold_choice(folded: dict[str, Any], choice: dict[str, Any]) -> None:
    folded["text"].append(choice["text"])
    if logprobs := choice["logprobs"]:
        for name, values in logprobs.items():
            folded["logprobs"][name] += values
    fold_ending(folded, choice)
    if "prompt_token_ids" in choice:
        folded["prompt_token_ids"] = choice["prompt_token_ids"]

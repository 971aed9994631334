"""Turns the outputs of vLLM's engine for one prompt into Tokka's events."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tokka.core import (
    ChoiceDone,
    FinishReason,
    GenerateRequest,
    PromptEcho,
    PromptLogprobs,
    TextDelta,
    TokenLogprob,
)
from tokka.engine.generation.choice import Choice
from tokka.engine.generation.delivery import Delivery
from tokka.engine.vllm.error_mapping import EndedByEngine
from tokka.engine.vllm.vocabulary import Vocabulary

# Maximum prompt tokens in one event: 2 ms with 20 alternatives each.
_PART_TOKENS = 64
# Seconds for which the tokens of a sequence are gathered if the client wants only the whole answer.
GATHER_S = 0.25


class PromptOutputs:
    """Passes the tokens of one prompt's choices to the request's delivery.

    `copies`: choices per sequence of the engine (greedy choices are generated once).
    `echo`: the prompt's text, if the response includes it.
    """

    def __init__(
        self,
        prompt_index: int,
        token_ids: Sequence[int],
        request: GenerateRequest,
        delivery: Delivery,
        *,
        copies: int,
        limit: int,
        echo: str | None,
        vocabulary: Vocabulary,
    ) -> None:
        self._prompt_index = prompt_index
        # Not all tokens: those of a long prompt take a megabyte.
        self._first_ids = token_ids[:1]
        self._prompt_tokens = len(token_ids)
        self._resumed = request.resume
        self._sampling = sampling = request.sampling
        self._delivery = delivery
        self._copies = copies
        self._limit = limit
        self._echo = echo
        self._prompt_scores: Any = None
        self._has_begun = False
        self._vocabulary = vocabulary
        self._table = vocabulary.table
        # Whether the tokens of several steps may be taken together: the client reads none before the end, no stop
        # string can end a choice, and no token needs logprobs.
        self.gathers = not (request.stream or sampling.stop) and sampling.logprobs is None and limit > 0
        self._choices: list[Choice] = []
        self._ended: set[int] = set()
        self.cached_tokens = 0

    @property
    def completion_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self._choices) * self._copies

    def sequence(self, index: int, request: Any) -> SequenceOutputs:
        """Return the receiver of one engine sequence's outputs. `request`: vLLM's request."""
        first = self._prompt_index * self._sampling.n + index * self._copies
        decode = self._vocabulary.decoder(
            request, skip_special=self._sampling.skip_special_tokens, resumed=len(self._resumed)
        )
        choice = Choice(first, self._sampling, decode, self._resumed)
        self._choices.append(choice)
        return SequenceOutputs(self, first, choice)

    def begin(self, cached_tokens: int, scores: Any) -> None:
        """Note a sequence's first token: the prompt is computed.

        `scores`: vLLM's LogprobsTensors of the prompt's tokens from the second on, one row per token.
        """
        # Tokens of `resume` may be cached too.
        self.cached_tokens = max(self.cached_tokens, min(cached_tokens, self._prompt_tokens))
        if not self._has_begun and (self._echo is not None or self._sampling.prompt_logprobs is not None):
            self._prompt_scores = scores
            self._delivery.put_parts(self._prompt_parts())
        self._has_begun = True

    def _prompt_parts(self) -> Iterator[PromptEcho | PromptLogprobs]:
        """Yield the requested echo and logprobs of the prompt, in parts."""
        text, self._echo = self._echo, None
        scores, self._prompt_scores = self._prompt_scores, None
        if text is not None:
            yield from self._echo_parts(text, scores)
        if self._sampling.prompt_logprobs is not None:
            yield from self._scored_parts(self._sampling.prompt_logprobs, scores)

    def _echo_parts(self, text: str, scores: Any) -> Iterator[PromptEcho]:
        """Yield the echoed prompt: its text with the first token's logprob, then the other tokens' logprobs."""
        if self._sampling.logprobs is None or scores is None:
            yield PromptEcho(self._prompt_index, text, None)
            return
        first = self._table.logprob(self._first_ids[0], None)
        if self._table.is_special(first.id) and not text.startswith(first.text):
            # The tokenizer added this token before the text, so it has no bytes in the text.
            first = replace(first, bytes=b"")
        yield PromptEcho(self._prompt_index, text, (first,))
        for part in _parts(scores):
            tokens = tuple(self._scored(ids, logprobs) for ids, logprobs, _ in part)
            yield PromptEcho(self._prompt_index, "", tokens)

    def _scored_parts(self, wanted: int, scores: Any) -> Iterator[PromptLogprobs]:
        """Yield the logprobs of the prompt's tokens. `scores` is None for a prompt of one token."""
        yield PromptLogprobs(self._prompt_index, (self._table.logprob(self._first_ids[0], None),), (0,))
        for part in _parts(scores) if scores is not None else ():
            tokens = tuple(self._scored(ids, logprobs, wanted) for ids, logprobs, _ in part)
            yield PromptLogprobs(self._prompt_index, tokens, tuple(rank for *_, rank in part))

    def take(
        self, first: int, choice: Choice, token_ids: Sequence[int], reason: str | None, stop: Any, scores: Any
    ) -> bool:
        """Pass on a step's tokens; return whether the choice has ended. `scores`: as in `SequenceOutputs.take`."""
        if not self._limit:
            # The request only scores the prompt. Drop the token that the engine had to generate (design 3.6).
            if reason:
                self._for_each_copy(first, None, ChoiceDone(first, "length"))
            return reason is not None
        ended: FinishReason | None = None
        # design 4.2
        if reason is not None:
            ended = "stop" if reason == "stop" else "length"
        logprobs = None
        if self._sampling.logprobs is not None:
            rows = zip(scores.logprob_token_ids.tolist(), scores.logprobs.tolist(), strict=True)
            logprobs = [self._as_shown(self._scored(*row)) for row in rows]
        delta, done = choice.take(token_ids, ended, stop, logprobs)
        # design 3.6
        if self._copies == 1:
            self._delivery.put(delta, done)
        else:
            self._for_each_copy(first, delta, done)
        return done is not None

    def end(self, index: int) -> None:
        """Drop further tokens of a choice and its copies: the choice's reader has ended it."""
        first = self._prompt_index * self._sampling.n
        self._ended.add(first + (index - first) // self._copies * self._copies)

    def is_ended(self, first: int) -> bool:
        return first in self._ended

    def fail(self, error: Exception) -> None:
        self._delivery.fail(error)

    def _for_each_copy(self, first: int, delta: TextDelta | None, done: ChoiceDone | None) -> None:
        for index in range(first, first + self._copies):
            own = replace(delta, index=index) if delta else TextDelta(index, "", ())
            self._delivery.put(own, replace(done, index=index) if done else None)

    def _as_shown(self, token: TokenLogprob) -> TokenLogprob:
        """Return the token, without bytes if it is a special token that the text leaves out."""
        hidden = self._sampling.skip_special_tokens and self._table.is_special(token.id)
        return replace(token, bytes=b"") if hidden else token

    def _scored(self, ids: list[int], logprobs: list[float], wanted: int | None = None) -> TokenLogprob:
        """Return a token with its logprob and `wanted` alternatives; None: as many as the request's `logprobs`.

        `ids`, `logprobs`: first the token's own, then the likeliest tokens' in order.
        """
        if wanted is None:
            wanted = self._sampling.logprobs or 0
        top = map(self._table.logprob, ids[1 : wanted + 1], logprobs[1 : wanted + 1])
        return self._table.logprob(ids[0], logprobs[0], tuple(top))


def _parts(scores: Any) -> Iterator[list[tuple[list[int], list[float], int]]]:
    """Yield the rows of vLLM's scores in parts. A row: ids and logprobs as in `_scored`, and the token's rank."""
    ids, logprobs, ranks, *_ = scores
    for at in range(0, len(ids), _PART_TOKENS):
        columns = (column[at : at + _PART_TOKENS].tolist() for column in (ids, logprobs, ranks))
        yield list(zip(*columns, strict=True))


class SequenceOutputs:
    """Receives the outputs of one sequence, in place of vLLM's queue.

    Until `gathers_until_s` (monotonic), the caller adds the tokens of steps that do not end the sequence to `gathered`,
    instead of calling `take`. That is all that such a step costs.
    """

    __slots__ = ("_choice", "_first", "_prompt", "gathered", "gathers_until_s")

    def __init__(self, prompt: PromptOutputs, first: int, choice: Choice) -> None:
        self._prompt = prompt
        self._first = first
        self._choice = choice
        self.gathered: list[int] = []
        self.gathers_until_s = -math.inf

    def begin(self, cached_tokens: int, scores: Any) -> None:
        self._prompt.begin(cached_tokens, scores)

    def take(self, token_ids: Sequence[int], reason: str | None, stop: Any, scores: Any) -> bool:
        """Pass on the gathered tokens and a step's own; return whether the sequence has ended.

        `reason`: why vLLM ended the sequence. `stop`: id of the token that ended it. `scores`: vLLM's LogprobsLists, if
        any; one row per token, with its own id and logprob first.
        """
        # design 3.5
        if self._prompt.is_ended(self._first):
            return True
        # design 4.6
        if reason not in (None, "stop", "length"):
            self._prompt.fail(EndedByEngine(reason))
            return True
        # design 3.5
        if self.gathered:
            token_ids, self.gathered = [*self.gathered, *token_ids], []
        is_over = self._prompt.take(self._first, self._choice, token_ids, reason, stop, scores)
        if self._prompt.gathers:
            # A choice that its reader has just ended must not gather: its next step ends the sequence.
            is_ended = self._prompt.is_ended(self._first)
            self.gathers_until_s = -math.inf if is_ended else time.monotonic() + GATHER_S
        return is_over

    def pooled(self, vector: Any) -> bool:
        """Refuse a vector: this sequence generates text."""
        raise TypeError("the engine sent a vector for a request that generates text")

    def put(self, output: object) -> None:
        """Pass on an error from vLLM. Drop vLLM's last output for an aborted sequence, which has no reader."""
        if isinstance(output, Exception):
            self._prompt.fail(output)

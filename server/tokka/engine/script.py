"""The scripted engine's output: one byte token per step, with made-up logprobs."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence

from tokka.core import ChoiceDone, FinishReason, Sampling, TextDelta, TokenLogprob
from tokka.engine.generation.choice import Choice

EOS = 256
VOCAB_SIZE = 257


def length_of(sampling: Sampling, limit: int, script: bytes, resumed: int = 0) -> int:
    """Return how many tokens a choice gets if no stop string ends it, at least 1: ending a choice takes a step.

    `resumed`: tokens that it already has.
    """
    if sampling.ignore_eos:
        return max(1, limit)
    whole = len(script) + 1
    return max(1, min(limit, whole * math.ceil((max(sampling.min_tokens, resumed) + 1) / whole)))


class Script:
    """Produces the tokens of one choice, one per step. `resumed`: as in `Choice`."""

    def __init__(self, index: int, sampling: Sampling, limit: int, script: bytes, resumed: Sequence[int] = ()) -> None:
        self._index = index
        self._sampling = sampling
        self._limit = limit
        self._script = script
        # `EOS`, the only token that is not a byte, always ends the choice and is not decoded.
        # Not `self` in the function: the cycle would need the garbage collector.
        text_of = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._choice = Choice(index, sampling, lambda ids: text_of(bytes(ids)), resumed)

    @property
    def num_tokens(self) -> int:
        return self._choice.num_tokens

    def step(self) -> tuple[TextDelta | None, ChoiceDone | None]:
        if self._limit == 0:
            scored = self._sampling.logprobs is not None
            return None, ChoiceDone(self._index, "length", None, 0.0 if scored else None)
        token = self._next_token()
        logprob = logprob_of(token, self._sampling.logprobs, self._sampling.logprob_token_ids)
        reason, end_token = self._end_with(token)
        return self._choice.take((token,), reason, end_token, None if logprob is None else (logprob,))

    def _end_with(self, token: int) -> tuple[FinishReason | None, int | None]:
        """Return why the next token ends the choice, if it does, and its id if it is one of `stop_token_ids`."""
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


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token for token in token_ids if token < EOS).decode(errors="replace")


def logprob_of(token: int, alternatives: int | None, listed: Sequence[int] = ()) -> TokenLogprob | None:
    if alternatives is None:
        return None
    raw = bytes([token]) if token < EOS else b""
    top = tuple(
        TokenLogprob(other, chr(other) if other < 128 else "\ufffd", bytes([other % EOS]), -0.25 * (rank + 1))
        for rank, other in enumerate(listed or [(token + k) % EOS for k in range(alternatives)])
    )
    return TokenLogprob(token, raw.decode(errors="replace"), raw, -0.25, top)


def prompt_logprobs(ids: Sequence[int], alternatives: int | None) -> tuple[TokenLogprob, ...] | None:
    if alternatives is None:
        return None
    first = TokenLogprob(ids[0], decode(ids[:1]), bytes(token for token in ids[:1] if token < EOS), None)
    return (first, *(scored for token in ids[1:] if (scored := logprob_of(token, alternatives))))

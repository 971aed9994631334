"""Turns the tokens of one choice into events, the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokka.core import ChoiceDone, FinishReason, Sampling, TextDelta, TokenLogprob
from tokka.engine.generation.stop_text import StopFilter

# Returns the text that the next tokens complete. Holds back an incomplete character.
Decode = Callable[[Sequence[int]], str]


class Choice:
    """One choice during generation. Decides when it ends.

    `resumed`: its first tokens, if it continues after them. They count, and their text has been sent.
    """

    __slots__ = ("_decode", "_has_stops", "_index", "_logprob", "_sampling", "_text", "num_tokens")

    def __init__(self, index: int, sampling: Sampling, decode: Decode, resumed: Sequence[int] = ()) -> None:
        self.num_tokens = len(resumed)
        self._index = index
        self._sampling = sampling
        self._decode = decode
        self._text = StopFilter(sampling.stop, sampling.include_stop)
        self._has_stops = bool(sampling.stop)
        # Sum of the tokens' logprobs, if they were requested.
        self._logprob = 0.0
        if resumed:
            # The next token's text depends on them: it may complete a character, or need a space before it.
            decode(resumed)

    def take(
        self,
        token_ids: Sequence[int],
        reason: FinishReason | None = None,
        end_token: int | None = None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> tuple[TextDelta, ChoiceDone | None]:
        """Add a step's tokens. Return their delta, and the end if they are the last tokens.

        `reason`: why the engine ended the choice, if it did. With "stop" the last token ended it; `end_token` is the
        id of that token, or None for the model's own end token. `logprobs`: one per token, if requested. A stop string
        ends the choice at the token that completes it; later tokens are dropped.
        """
        if logprobs is None and not self._has_stops:
            # Nearly all requests: nothing can hold back the text, so all tokens are decoded together.
            self.num_tokens += len(token_ids)
            shown = token_ids[:-1] if reason == "stop" and not self._shows_end(end_token) else token_ids
            done = None if reason is None else ChoiceDone(self._index, reason, end_token)
            return TextDelta(self._index, self._decode(shown), token_ids), done
        text, sent, stop = self._text, "", None
        ends_at = len(token_ids) - 1 if reason == "stop" else -1
        for place, token in enumerate(token_ids):
            self.num_tokens += 1
            if logprobs is not None:
                self._logprob += logprobs[place].logprob or 0.0
            if place == ends_at and not self._shows_end(end_token):
                break
            if logprobs is not None:
                text.add_tokens(logprobs[place : place + 1])
            piece = self._decode((token,))
            # vllm/design 3.8
            if place == ends_at or self.num_tokens <= self._sampling.min_tokens:
                sent += text.feed(piece)
                continue
            piece, stop = text.feed_before_stop(piece)
            sent += piece
            # vllm/design 4.1
            if stop is not None:
                token_ids, reason = token_ids[: place + 1], "stop"
                break
        if reason is None:
            return self._delta(sent, token_ids, scored=logprobs is not None), None
        if stop is None:
            sent += text.flush()
        delta = self._delta(sent, token_ids, scored=logprobs is not None, everything=stop is None)
        total = None if logprobs is None else self._logprob
        return delta, ChoiceDone(self._index, reason, stop if stop is not None else end_token, total)

    def _shows_end(self, end_token: int | None) -> bool:
        """Return whether the text includes the token that ended the choice."""
        return self._sampling.include_stop and end_token is not None

    def _delta(self, sent: str, token_ids: Sequence[int], *, scored: bool, everything: bool = False) -> TextDelta:
        text = self._text
        if not scored:
            return TextDelta(self._index, sent, token_ids, None, text.held)
        logprobs = text.take_logprobs(everything)
        return TextDelta(self._index, sent, token_ids, logprobs, text.held, text.held_logprobs)

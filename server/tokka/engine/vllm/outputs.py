"""From vLLM's outputs to our events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tokka.core import ChoiceDone, Event, PromptEcho, Sampling, TextDelta, TokenLogprob
from tokka.engine.text import ChoiceText
from tokka.engine.vllm.tokens import TokenTable
from tokka.errors import EngineError


class PromptOutputs:
    """The outputs of one prompt, as events of its choices.

    `copies`: how many choices each output of the engine stands for (greedy choices are generated once).
    """

    def __init__(self, prompt_index: int, sampling: Sampling, copies: int, limit: int, table: TokenTable) -> None:
        self._prompt_index = prompt_index
        self._sampling = sampling
        self._copies = copies
        self._limit = limit
        self._table = table
        self._texts = [ChoiceText(sampling.stop, sampling.include_stop) for _ in range(sampling.n // copies)]
        self._num_tokens = [0] * len(self._texts)
        self.cached_tokens = 0

    @property
    def completion_tokens(self) -> int:
        return sum(self._num_tokens) * self._copies if self._limit else 0

    def echo(self, output: Any, text: str, token_ids: Sequence[int]) -> PromptEcho:
        scores = output.prompt_logprobs
        if self._sampling.logprobs is None or scores is None:
            return PromptEcho(self._prompt_index, text, None)
        logprobs = [self._scored(token, score) for token, score in zip(token_ids, scores, strict=True)]
        if self._table.is_special(logprobs[0].id) and not text.startswith(logprobs[0].text):
            # The tokenizer put it before the text, so it takes no room in it.
            logprobs[0] = replace(logprobs[0], bytes=b"")
        return PromptEcho(self._prompt_index, text, tuple(logprobs))

    def feed(self, output: Any) -> Iterator[Event]:
        self.cached_tokens = max(self.cached_tokens, output.num_cached_tokens or 0)
        for part in output.outputs:
            for event in self._feed_choice(part):
                yield from self._for_each_copy(event)

    def _for_each_copy(self, event: TextDelta | ChoiceDone) -> Iterator[Event]:
        first = self._prompt_index * self._sampling.n + event.index * self._copies
        for copy in range(self._copies):
            match event:
                case TextDelta(_, text, token_ids, logprobs, held, held_logprobs):
                    yield TextDelta(first + copy, text, token_ids, logprobs, held, held_logprobs)
                case ChoiceDone(_, finish_reason, stop_reason, cumulative):
                    yield ChoiceDone(first + copy, finish_reason, stop_reason, cumulative)

    def _feed_choice(self, part: Any) -> Iterator[TextDelta | ChoiceDone]:
        reason = part.finish_reason
        if reason not in (None, "stop", "length"):
            raise EngineError(f"The engine ended this request: {reason}.")
        if not self._limit:
            # Only the prompt was to be scored; the engine had to generate one token for it, which nobody asked for.
            if reason:
                yield ChoiceDone(part.index, "length")
            return
        self._num_tokens[part.index] += len(part.token_ids)
        text = self._texts[part.index]
        matched = part.stop_reason if reason == "stop" else None
        ended_by_token = reason == "stop" and not isinstance(matched, str)
        if self._sampling.logprobs is not None:
            text.add_tokens(self._logprobs(part, drop_last=ended_by_token and not self._shows_end(part)))
        sent = self._text_to_send(text, part, ended_by_token)
        if isinstance(matched, str) and self._sampling.min_tokens:
            # vLLM merges steps for a slow reader: an earlier stop in this text may be one that did not count yet.
            sent = text.end_with(sent, matched)
        elif isinstance(matched, str):
            # vLLM takes the first of its list; of those one step completes, the first in the text is meant.
            sent, matched = text.feed_stop(sent)
        elif reason:
            sent = text.feed(sent) + text.flush()
        else:
            sent = text.feed(sent)
        logprobs = None
        if self._sampling.logprobs is not None:
            logprobs = text.take_logprobs(everything=bool(reason) and not isinstance(matched, str))
        yield TextDelta(part.index, sent, tuple(part.token_ids), logprobs, text.held, text.held_logprobs)
        if reason:
            yield ChoiceDone(part.index, reason, matched, part.cumulative_logprob)

    def _shows_end(self, part: Any) -> bool:
        """Tell whether the token that ended the choice belongs to its text."""
        return self._sampling.include_stop and isinstance(part.stop_reason, int)

    def _text_to_send(self, text: ChoiceText, part: Any, ended_by_token: bool) -> str:
        """Return the step's text without the end token, which vLLM leaves in when it is told to keep stop strings."""
        new: str = part.text
        kept_by_vllm = self._sampling.stop or self._sampling.include_stop
        if not ended_by_token or self._shows_end(part) or not kept_by_vllm or not part.token_ids:
            return new
        last = part.token_ids[-1]
        if self._sampling.skip_special_tokens and self._table.is_special(last):
            return new
        return new.removesuffix(self._table.text(last))

    def _logprobs(self, part: Any, drop_last: bool) -> list[TokenLogprob]:
        scores = part.logprobs or []
        tokens = [
            self._as_shown(self._scored(token, score)) for token, score in zip(part.token_ids, scores, strict=True)
        ]
        return tokens[:-1] if drop_last else tokens

    def _as_shown(self, token: TokenLogprob) -> TokenLogprob:
        """A special token that is left out of the text takes no room in it."""
        hidden = self._sampling.skip_special_tokens and self._table.is_special(token.id)
        return replace(token, bytes=b"") if hidden else token

    def _scored(self, token: int, score: Any) -> TokenLogprob:
        """Return the token with its logprob and the alternatives asked for, likeliest first."""
        if score is None:
            return self._table.logprob(token, None)
        ranked = sorted(score.items(), key=lambda entry: entry[1].rank or 0)
        # vLLM adds the sampled token to the alternatives when it is not among them.
        wanted = self._sampling.logprobs or 0
        top = tuple(self._table.logprob(other, entry.logprob) for other, entry in ranked if (entry.rank or 0) <= wanted)
        return self._table.logprob(token, score[token].logprob, top)

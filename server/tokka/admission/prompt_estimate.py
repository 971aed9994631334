"""Estimate the number of tokens of a prompt before it is tokenised. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokka.core import Prompt, TokensPrompt
from tokka.prompt_size import text_chars

# First ratio: tokens per character of English prose with vocabularies of 30,000 to 150,000 tokens.
_TOKENS_PER_CHAR = 0.25
# Minimum characters of a prompt to learn from. In shorter ones the template around the text decides the ratio.
_LEARN_FROM_CHARS = 200
# Weight of the latest prompt in the average.
_WEIGHT = 0.1
# Share of the average that ordinary text has at least. Long runs of spaces or dashes have less.
_LEAST = 0.25


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Estimated tokens of a request's prompts, and the least that they have, degenerate texts aside."""

    likely: int
    least: int


class PromptEstimate:
    """Learns tokens per character from the prompts that were tokenised."""

    def __init__(self) -> None:
        self._ratio = _TOKENS_PER_CHAR

    def size(self, prompts: Sequence[Prompt]) -> PromptSize:
        given = sum(len(prompt.token_ids) for prompt in prompts if isinstance(prompt, TokensPrompt))
        tokens = self._ratio * sum(map(text_chars, prompts))
        return PromptSize(given + math.ceil(tokens), given + math.ceil(_LEAST * tokens))

    def learn(self, prompts: Sequence[Prompt], tokens: int) -> None:
        """Adapt the ratio to prompts that were tokenised to so many tokens."""
        chars = sum(map(text_chars, prompts))
        if chars >= _LEARN_FROM_CHARS:
            self._ratio += _WEIGHT * (tokens / chars - self._ratio)

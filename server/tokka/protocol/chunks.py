"""What the chunks of both endpoints have in common: their head, when they carry usage, their padding, their folding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokka.core import TextDelta, Usage
from tokka.protocol.common import padding, usage_object
from tokka.protocol.generation import GenerationFields


class Chunks:
    """Builds the chunks of one answer around an endpoint's own choices, and counts its tokens on the way."""

    def __init__(self, request: GenerationFields, head: dict[str, Any]) -> None:
        self._head = head
        self._usage = request.include_usage or not request.stream
        self._continuous = request.continuous_usage
        self._obfuscates = request.obfuscates
        self.shows_token_ids = bool(request.return_token_ids)
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def begin(self, prompt_token_ids: Sequence[Sequence[int]]) -> None:
        self._prompt_tokens = sum(map(len, prompt_token_ids))

    def count(self, event: TextDelta) -> bool:
        """Count a delta's tokens; tell whether it holds anything to send."""
        self._completion_tokens += len(event.token_ids)
        return bool(event.text or event.logprobs or (self.shows_token_ids and event.token_ids))

    def of(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk of a choice."""
        chunk = {**self._head, "choices": [choice]}
        if self._continuous:
            chunk["usage"] = usage_object(Usage(self._prompt_tokens, self._completion_tokens))
        elif self._usage:
            chunk["usage"] = None
        return chunk

    def of_delta(self, choice: dict[str, Any], event: TextDelta) -> dict[str, Any]:
        """Return the chunk of a choice with new text."""
        if self.shows_token_ids:
            choice["token_ids"] = list(event.token_ids)
        chunk = self.of(choice)
        if self._obfuscates:
            chunk["obfuscation"] = padding(event.text)
        return chunk

    def end(self, usage: Usage) -> list[dict[str, Any]]:
        """Return the usage chunk, if one is wanted."""
        return [{**self._head, "choices": [], "usage": usage_object(usage)}] if self._usage else []


def fold_ending(folded: dict[str, Any], choice: dict[str, Any]) -> None:
    """Add a chunk's token ids and reasons to the folded choice."""
    if "token_ids" in choice:
        folded.setdefault("token_ids", []).extend(choice["token_ids"])
    if choice["finish_reason"]:
        folded["finish_reason"] = choice["finish_reason"]
        folded["stop_reason"] = choice["stop_reason"]

"""Decodes token ids to text as they arrive: Tokka's own decoder for byte-level vocabularies, vLLM's for others."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from copy import copy
from itertools import filterfalse
from typing import Any

from tokka.engine.generation.choice import Decode
from tokka.engine.vllm.token_table import TokenTable


class Vocabulary:
    """Decodes the tokens of a model."""

    def __init__(self, tokenizer: Any) -> None:
        self.table = TokenTable(tokenizer)
        self._tokenizer = tokenizer
        self._is_byte_level = _is_byte_level(tokenizer)

    def decoder(self, request: Any, *, skip_special: bool, resumed: int = 0) -> Decode:
        """Return a decoder for one sequence of the engine. `request`: vLLM's request.

        `resumed`: number of tokens at the end of its prompt that belong to the choice. The decoder begins before them.

        In a byte-level vocabulary a text is the joined bytes of its tokens: one table look-up per token. The library
        instead decodes the last few tokens twice for each new token and compares the texts.
        """
        # design 3.7
        if self._is_byte_level:
            return _byte_decoder(self.table, skip_special)
        if resumed:
            # The library's decoder would begin with the prompt's text if these tokens ended inside a character.
            request = copy(request)
            request.prompt_token_ids = request.prompt_token_ids[:-resumed]
        return _library_decoder(self._tokenizer, request)


def _is_byte_level(tokenizer: Any) -> bool:
    from tokenizers import decoders

    return isinstance(getattr(getattr(tokenizer, "_tokenizer", None), "decoder", None), decoders.ByteLevel)


def _byte_decoder(table: TokenTable, skip_special: bool) -> Decode:
    is_hidden = (table.special if skip_special else frozenset()).__contains__
    raw = table.raw
    # The bytes of an incomplete character. The library's incremental decoder does the same for twice the CPU.
    held = b""

    def text_of(token_ids: Sequence[int]) -> str:
        nonlocal held
        data = held + b"".join(map(raw, filterfalse(is_hidden, token_ids)))
        text, used = codecs.utf_8_decode(data, "replace", False)
        held = data[used:]
        return text

    return text_of


def _library_decoder(tokenizer: Any, request: Any) -> Decode:
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)

    def text_of(token_ids: Sequence[int]) -> str:
        detokenizer.update(list(token_ids), False)
        text: str = detokenizer.get_next_output_text(False, True)
        return text

    return text_of

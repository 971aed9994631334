"""From token ids to text, a token at a time: our own way where the vocabulary is bytes, vLLM's for the others."""

from __future__ import annotations

import codecs
from typing import Any

from tokka.engine.choice import Decode
from tokka.engine.vllm.tokens import TokenTable


class Vocabulary:
    """What a model's tokens stand for."""

    def __init__(self, tokenizer: Any) -> None:
        self.table = TokenTable(tokenizer)
        self._tokenizer = tokenizer
        self._is_byte_level = _is_byte_level(tokenizer)

    def decoder(self, request: Any, *, skip_special: bool) -> Decode:
        """Return what decodes one sequence of the engine. `request`: vLLM's.

        In a byte-level vocabulary a text is its tokens' bytes, one behind the other: a look into a table, where the
        library decodes the last few tokens twice for each new one and compares.
        """
        if self._is_byte_level:
            return _byte_decoder(self.table, skip_special)
        return _library_decoder(self._tokenizer, request)


def _is_byte_level(tokenizer: Any) -> bool:
    from tokenizers import decoders

    return isinstance(getattr(getattr(tokenizer, "_tokenizer", None), "decoder", None), decoders.ByteLevel)


def _byte_decoder(table: TokenTable, skip_special: bool) -> Decode:
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    hidden = table.special if skip_special else frozenset()
    raw = table.raw

    def text_of(token: int) -> str:
        return "" if token in hidden else decode(raw(token))

    return text_of


def _library_decoder(tokenizer: Any, request: Any) -> Decode:
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)

    def text_of(token: int) -> str:
        detokenizer.update([token], False)
        text: str = detokenizer.get_next_output_text(False, True)
        return text

    return text_of

"""The exact bytes of each token: what logprobs report, also where a character is split over tokens."""

from __future__ import annotations

import re
from typing import Any, Literal

from tokka.core import TokenLogprob

_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


class TokenTable:
    """Token id to bytes and text. Remembers what it has seen: at most one entry for each token of the vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._kind = _kind_of(tokenizer)
        self._seen: dict[int, bytes] = {}

    def logprob(self, token: int, logprob: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        raw = self._seen.get(token)
        if raw is None:
            raw = self._seen[token] = self._bytes(token)
        return TokenLogprob(token, raw.decode(errors="replace"), raw, logprob, top)

    def is_special(self, token: int) -> bool:
        return token in self._special

    def text(self, token: int) -> str:
        return self.logprob(token, None).text

    def _bytes(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            # Logits are often padded beyond the tokenizer's vocabulary.
            return b""
        if isinstance(piece, bytes):
            return piece
        if token in self._special:
            return str(piece).encode()
        match self._kind:
            case "byte-level" if all(char in _BYTE_OF_CHAR for char in piece):
                return bytes(_BYTE_OF_CHAR[char] for char in piece)
            case "sentencepiece":
                if byte := _BYTE_TOKEN.match(piece):
                    return bytes([int(byte[1], 16)])
                return str(piece).replace("▁", " ").encode()
        return str(self._tokenizer.decode([token])).encode()


def _kind_of(tokenizer: Any) -> Literal["byte-level", "sentencepiece", "other"]:
    """Tell how the vocabulary writes a space."""
    pieces = "".join(map(str, tokenizer.tokenize("a b")))
    if "Ġ" in pieces:
        return "byte-level"
    return "sentencepiece" if "▁" in pieces else "other"


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others for characters from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()

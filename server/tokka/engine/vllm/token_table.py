"""The exact bytes of each token. Logprobs report them, even if a character is split over tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from tokka.core import TokenLogprob

# OpenAI's logprob of an impossible token. vLLM reports minus infinity for a token that a constraint rules out, and JSON
# has no infinity.
_VERY_UNLIKELY = -9999.0
_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


class TokenTable:
    """Maps token ids to bytes and text.

    Reads a byte-level vocabulary at construction (a tenth of a second for 128,000 tokens, off the request path). Caches
    the tokens of other vocabularies at first use.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Tokens that `skip_special_tokens` leaves out: more than the named ones (bos, eos, ...).
        self.special = frozenset(tokenizer.all_special_ids) | _marked_special(tokenizer)
        self._kind = _kind_of(tokenizer)
        self._seen = _Seen(self._bytes, self._all_bytes() if self._kind == "byte-level" else {})
        # Returns a token's bytes; empty for an id beyond the tokenizer's vocabulary. A method of the dictionary itself,
        # because each generated token is looked up.
        self.raw = self._seen.__getitem__

    def logprob(self, token: int, logprob: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        raw = self.raw(token)
        if logprob is not None:
            logprob = max(logprob, _VERY_UNLIKELY)
        return TokenLogprob(token, raw.decode(errors="replace"), raw, logprob, top)

    def is_special(self, token: int) -> bool:
        return token in self.special

    def _all_bytes(self) -> dict[int, bytes]:
        known = {}
        for piece, token in self._tokenizer.get_vocab().items():
            if token not in self.special and (raw := _bytes_of(piece)) is not None:
                known[token] = raw
        return known

    def _bytes(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            # Logits are often padded beyond the tokenizer's vocabulary.
            return b""
        if isinstance(piece, bytes):
            return piece
        if token in self.special:
            return str(piece).encode()
        match self._kind:
            case "byte-level" if (raw := _bytes_of(piece)) is not None:
                return raw
            case "sentencepiece":
                if byte := _BYTE_TOKEN.match(piece):
                    return bytes([int(byte[1], 16)])
                return str(piece).replace("▁", " ").encode()
        return str(self._tokenizer.decode([token])).encode()


class _Seen(dict[int, bytes]):
    """The bytes of known tokens. Asks `read` for a token that is not known yet."""

    def __init__(self, read: Callable[[int], bytes], known: dict[int, bytes]) -> None:
        super().__init__(known)
        self._read = read

    def __missing__(self, token: int) -> bytes:
        raw = self[token] = self._read(token)
        return raw


def _marked_special(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(token for token, entry in added.items() if entry.special)


def _kind_of(tokenizer: Any) -> Literal["byte-level", "sentencepiece", "other"]:
    """Return the kind of vocabulary, judged by how it writes a space."""
    pieces = "".join(map(str, tokenizer.tokenize("a b")))
    if "Ġ" in pieces:
        return "byte-level"
    return "sentencepiece" if "▁" in pieces else "other"


def _bytes_of(piece: str) -> bytes | None:
    """Return the bytes of a piece of a byte-level vocabulary; None for an added piece in plain text."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in piece])
    except KeyError:
        return None


def _byte_of_char() -> dict[str, int]:
    """Return GPT-2's byte-level alphabet: a printable byte is its own character, the others follow from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()

"""Cuts a text where the tokenizer itself cuts it, so that the tokens of the pieces are the tokens of the text.

A tokenizer first finds its added tokens, for example <|im_start|>. It normalises, splits and encodes each piece between
them on its own. Two things depend on the place of a piece: whether the text begins with it, and whether an added token
stands before it. Both stay the same if each segment begins with an added token. So a text is cut directly before added
tokens, and only where no other added token can overlap the cut.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from tokka.engine.templates.control_tokens import Written

# Minimum characters of a segment. Shorter ones in a row are joined, since each segment takes a look-up and an entry.
_LEAST_CHARS = 256
# Characters searched at once, before other threads get a turn.
_WINDOW_CHARS = 64 << 10
# Characters that may begin a cut. Added tokens take whitespace and letters beside them into account.
_FIRST_CHARS = frozenset(string.punctuation) - {"_"}
# Parts of a tokenizer that work on each piece alone. A part in Python is none of them.
_PRE_TOKENIZERS = {
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation"),
    *("Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
}
_NORMALIZERS = {
    *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"),
    *("Replace", "Sequence", "Strip", "StripAccents"),
}
_MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}


class Segments:
    """Cuts texts. `cuts`: added tokens before which a text may be cut."""

    def __init__(self, cuts: Sequence[str]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, cuts)))
        self._longest = max(map(len, cuts))

    def of(self, written: Written) -> Iterator[Written]:
        """Yield the segments of a text. The cuts in a text stay when text is appended to it."""
        text, done = written.text, 0
        for begin, end in pairwise((0, *self._starts(text), len(text))):
            if end - begin >= _LEAST_CHARS and done < begin:
                # A long segment stays apart, so that it is found again behind other short ones.
                yield written.part(done, begin)
                done = begin
            if end - done >= _LEAST_CHARS:
                yield written.part(done, end)
                done = end
        if done < len(text):
            yield written.part(done, len(text))

    def _starts(self, text: str) -> Iterator[int]:
        """Yield the places of all cuts. They do not overlap, so a search may begin anywhere."""
        for edge in range(0, len(text), _WINDOW_CHARS):
            behind = edge + _WINDOW_CHARS
            for match in self._pattern.finditer(text, edge, behind + self._longest - 1):
                if match.start() < behind:
                    yield match.start()


def find_segments(tokenizer: Any, structure: str) -> Segments | None:
    """Return how to cut texts for a tokenizer; None if no exact cut is known.

    `structure`: the template's text. Only tokens that it contains, and the tokenizer's named special tokens, are cuts.
    """
    if not _works_on_pieces(tokenizer):
        return None
    used = {str(text) for text in tokenizer.special_tokens_map.values()}
    added = [entry for entry in tokenizer.backend_tokenizer.get_added_tokens_decoder().values() if not entry.normalized]
    cuts = [
        entry.content
        for entry in added
        if (entry.content in structure or entry.content in used) and _is_cut(entry.content, added)
    ]
    return Segments(sorted(cuts)) if cuts else None


def _is_cut(cut: str, added: Sequence[Any]) -> bool:
    """Return whether each occurrence of an added token begins a match of the tokenizer. `added`: all of its kind.

    The tokenizer takes the leftmost match, then the longest. So a match begins at each occurrence of the token unless
    another match began before and has not ended there.
    """
    if cut[0] not in _FIRST_CHARS:
        return False
    for entry in added:
        # The tokenizer widens a match with `lstrip` to the left, and may reject one with `single_word`.
        if entry.content.startswith(cut) and (entry.lstrip or entry.single_word):
            return False
        rests = (entry.content[at:] for at in range(1, len(entry.content)))
        if any(rest.startswith(cut) or cut.startswith(rest) for rest in rests):
            return False
    return True


def _works_on_pieces(tokenizer: Any) -> bool:
    """Return whether a tokenizer declares that it consists of known parts, without a random one."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.split_special_tokens:
        return False
    if type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return False
    backend = tokenizer.backend_tokenizer
    model = backend.model
    return (
        type(model).__name__ in _MODELS
        # BPE and Unigram can choose between splits of a word at random.
        and not getattr(model, "dropout", None)
        and not getattr(model, "alpha", None)
        and _kinds(backend.pre_tokenizer, "pretokenizers") <= _PRE_TOKENIZERS
        and _kinds(backend.normalizer, "normalizers") <= _NORMALIZERS
    )


def _kinds(part: Any, below: str) -> set[str]:
    """Return the kinds of a tokenizer's part and of the parts in it. A part in Python has the kind `custom`."""
    if part is None:
        return set()
    try:
        waiting = [json.loads(part.__getstate__())]
    except Exception:
        # The library raises this class itself for a part in Python.
        return {"custom"}
    found = set()
    while waiting:
        declared = waiting.pop()
        found.add(declared["type"])
        waiting += declared.get(below, ())
    return found

"""Control tokens: tokens that only the chat template may write, for example <|im_start|>. A mark is the text of one.

A template joins its own marks and the clients' text into one string. `client_marks.py` finds the author of each mark.
This module turns the marks that a client wrote into the tokens of their letters.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import orjson

from tokka.core import ChatPrompt
from tokka.engine.templates.tool_prompt import TOOL_MARKS

# Added tokens that are not special may be ordinary text: words, spaces, brackets, HTML tags. Tokens of this format are
# control tokens: <|fim_prefix|>, <｜tool▁sep｜>, <TOOLCALL>, <tool_call>.
_TAG = re.compile(r"^<(?!!|/?[a-z][a-z0-9]*/?>)[^<>\s]*[^\W\d_][^<>\s]*>$")
# Tokens of this format are control tokens if a template uses them.
_BRACKETED = re.compile(r"^[<\[{(|].*[>\]})|]$", re.DOTALL)
# Marks that some templates use. They count even if this template does not use them.
_STRUCTURE = " ".join((*TOOL_MARKS, "<think>", "</think>"))
_OPENING_CHARS = 2
# Characters searched at once, before other threads get a turn.
_WINDOW_CHARS = 64 << 10
# After one of these characters a mark is split into tokens as in the middle of a text.
_NEIGHBOURS = ("a", "\n", "0", ".")

# Start and end of a mark in a text, in characters.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Written:
    """A rendered conversation. `client`: the places of the marks that clients wrote, in order."""

    text: str
    client: Sequence[Place] = ()

    def first(self, chars: int) -> Written:
        """Return the first `chars` characters."""
        return self.part(0, chars)

    def last(self, chars: int) -> Written:
        """Return the last `chars` characters."""
        return self.part(max(0, len(self.text) - chars), len(self.text))

    def part(self, begin: int, end: int) -> Written:
        """Return the characters from `begin` to `end`."""
        end = min(end, len(self.text))
        if begin == 0 and end == len(self.text):
            return self
        text = self.text[begin:end]
        if not self.client:
            return Written(text)
        inside = self.client[
            bisect_right(self.client, begin, key=itemgetter(1)) : bisect_left(self.client, end, key=itemgetter(0))
        ]
        return Written(text, [(max(0, first - begin), min(last, end) - begin) for first, last in inside])


class ControlTokens:
    """The marks of one tokenizer and template.

    `structure`: the template's text; bracketed tokens in it are control tokens. `removed`: strings that the template
    removes from texts.
    """

    def __init__(self, tokenizer: Any, structure: str, removed: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._ids = _control_ids(tokenizer, f"{structure} {_STRUCTURE}")
        self.marks = tuple(sorted(self._ids))
        escaped = {orjson.dumps(mark).decode()[1:-1] for mark in self.marks}
        self._openings = tuple({mark[:_OPENING_CHARS] for mark in (*self.marks, *escaped)})
        self._longest = max(map(len, self.marks), default=0)
        self._pattern = _any_of(self.marks)
        # JSON may escape characters of a mark.
        self._in_json = _any_of([*self.marks, *escaped])
        # A removed string that contains a mark needs no check of its own: `_is_in` finds the mark.
        removed = [text for text in removed if text and not self._is_in(text)]
        self._removed = _any_of(removed) if removed else None
        self._control = frozenset(self._ids.values())
        self._is_loose = _normalizes(self._backend, self._ids)
        self._as_text = lru_cache(maxsize=1024)(self._text_ids)

    def are_in(self, prompt: ChatPrompt) -> bool:
        """Return whether any text of a prompt contains a mark, or would after the template's removals."""
        return any(self._is_in(text) or self._is_in_rest(text) for text in _texts(prompt))

    def found(self, text: str) -> Iterator[re.Match[str]]:
        """Yield the marks in a text in order, as the tokenizer finds them."""
        return self._matches(text, self._pattern)

    def needs_care(self, written: Written) -> bool:
        """Return whether `token_ids` may return other tokens than the tokenizer alone."""
        return bool(written.client) or self._is_loose

    def token_ids(self, written: Written, *, add_special_tokens: bool = False) -> list[int]:
        """Tokenise a rendered conversation. Marks that a client wrote become ordinary text.

        `add_special_tokens`: add the tokens that begin and end a text. Only fast tokenizers do.
        """
        if self._backend is None:
            return self._joined_ids(written)
        text = written.text
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        ids: list[int] = []
        client = iter((*written.client, (len(text) + 1, len(text) + 1)))
        begin, end = next(client)
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token not in self._control or first == last:
                ids.append(token)
                continue
            while end <= first:
                begin, end = next(client)
            # A template spells its marks exactly, so a client wrote any other spelling.
            if begin < last or (self._is_loose and text[first:last].strip() not in self._ids):
                ids += self._as_text(text[first:last])
            else:
                ids.append(token)
        return ids

    def _is_in(self, text: str) -> bool:
        if not any(opening in text for opening in self._openings):
            return False
        return next(self._matches(text, self._in_json), None) is not None

    def _is_in_rest(self, text: str) -> bool:
        if self._removed is None or self._removed.search(text) is None:
            return False
        return self._is_in(self._removed.sub("", text))

    def _matches(self, text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        at = 0
        while at < len(text):
            edge = at + _WINDOW_CHARS
            match = pattern.search(text, at, edge + 2 * self._longest)
            if match is None or match.start() >= edge:
                at = edge
            else:
                yield match
                at = match.end()

    def _joined_ids(self, written: Written) -> list[int]:
        """Like `token_ids`, for a tokenizer that does not report token offsets."""
        ids: list[int] = []
        done = 0
        for begin, end in written.client:
            ids += self._tokenizer(written.text[done:begin], add_special_tokens=False)["input_ids"]
            ids += self._as_text(written.text[begin:end])
            done = end
        return ids + list(self._tokenizer(written.text[done:], add_special_tokens=False)["input_ids"])

    def _text_ids(self, text: str) -> tuple[int, ...]:
        """Return a mark's tokens as ordinary text, as in the middle of a text."""
        if self._backend is None:
            each = (self._tokenizer(char, add_special_tokens=False)["input_ids"] for char in text)
            return tuple(token for ids in each for token in ids)
        bare = _without_added_tokens(self._backend)
        whole = _ids_behind(bare, text)
        if whole is not None and self._control.isdisjoint(whole):
            return whole
        # Some vocabularies also contain the mark as an ordinary word.
        return tuple(token for char in text for token in _ids_behind(bare, char) or ())


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Return a regular expression that matches the longest word at each position, in one pass."""
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for char in word:
            node = node.setdefault(char, {})
        node[""] = {}

    def written(node: Mapping[str, Any]) -> str:
        branches = [re.escape(char) + written(below) for char, below in node.items() if char]
        if not branches:
            return ""
        return f"(?:{'|'.join(branches)}){'?' if '' in node else ''}"

    return re.compile(written(tree) or r"(?!)")


def _texts(prompt: ChatPrompt) -> Iterator[str]:
    """Yield all text that clients wrote in a prompt. Structured values come as JSON."""
    for message in prompt.messages:
        for value in message.values():
            yield value if isinstance(value, str) else _json(value)
    if prompt.tools:
        yield _json(prompt.tools.functions)
    if prompt.template_kwargs:
        yield _json(dict(prompt.template_kwargs))


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        # The value nests too deeply for orjson.
        return json.dumps(value, ensure_ascii=False)


def _control_ids(tokenizer: Any, structure: str) -> dict[str, int]:
    """Return the token id of each mark. `structure`: the text of templates."""
    found: dict[str, int] = {}
    for token, entry in getattr(tokenizer, "added_tokens_decoder", {}).items():
        text = str(entry.content)
        is_used = _BRACKETED.match(text) is not None and text in structure
        if text.strip() and (entry.special or is_used or _TAG.match(text)):
            found[text] = token
    return found


def _normalizes(backend: Any, marks: Iterable[str]) -> bool:
    """Return whether normalisation may turn another spelling, for example in wide letters, into a mark."""
    if backend is None or backend.normalizer is None:
        return False
    added = backend.get_added_tokens_decoder().values()
    return any(entry.normalized for entry in added if entry.content in marks)


def _without_added_tokens(backend: Any) -> Any:
    from tokenizers import Tokenizer

    # The new tokenizer shares the vocabulary.
    bare = Tokenizer(backend.model)
    if backend.normalizer is not None:
        bare.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        bare.pre_tokenizer = backend.pre_tokenizer
    return bare


def _ids_behind(bare: Any, text: str) -> tuple[int, ...] | None:
    """Return a text's tokens in the middle of another text; None if they always merge with the preceding character."""
    for neighbour in _NEIGHBOURS:
        encoded = bare.encode(neighbour + text, add_special_tokens=False)
        first = next((place for place, (_, end) in enumerate(encoded.offsets) if end > len(neighbour)), None)
        if first is not None and encoded.offsets[first][0] >= len(neighbour):
            return tuple(encoded.ids[first:])
    return None

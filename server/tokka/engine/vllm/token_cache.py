"""Keeps the tokens of text segments, so that the text that a conversation repeats is tokenised once."""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TypeAlias

from tokka.engine.templates.control_tokens import Place

# Type code of an `array` of token ids.
_ID_TYPECODE = "I"
# Maximum memory of all segments, in bytes. A conversation of 20,000 tokens in English takes 200 KiB.
_MOST_BYTES = 128 << 20
# Approximate bytes of an entry beside its text and tokens.
_ENTRY_BYTES = 300
# Share of the memory that stays in use when it is full.
_KEPT_SHARE = 63 / 64

# A salt, a segment's text, and the places in it that become letters instead of control tokens. None: control tokens in
# it stay. The salt separates segments of one owner.
Segment = tuple[str | None, str, tuple[Place, ...] | None]
Tokens: TypeAlias = "array[int]"


class TokenCache:
    """A cache with limited memory. Any thread may use it.

    No owner finds the segments of another, so response times do not show which texts others sent. If the memory is
    full, the owner with the most bytes loses the segments that it has not used for longest.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._bytes_of: dict[str, int] = {}
        # The most recently used segment is last.
        self._segments: dict[str, OrderedDict[Segment, Tokens]] = {}
        self._lock = Lock()

    @property
    def bytes(self) -> int:
        return self._bytes

    def get(self, owner: str, segment: Segment) -> Tokens | None:
        """Return a segment's tokens, or None if they are not cached."""
        with self._lock:
            known = self._segments.get(owner)
            if known is None or (tokens := known.get(segment)) is None:
                return None
            known.move_to_end(segment)
            return tokens

    def put(self, owner: str, segment: Segment, token_ids: Sequence[int]) -> None:
        tokens = array(_ID_TYPECODE, token_ids)
        with self._lock:
            known = self._segments.setdefault(owner, OrderedDict())
            if segment in known:
                # Another thread was faster.
                return
            known[segment] = tokens
            self._count(owner, _size(segment, tokens))
            if self._bytes > self._most_bytes:
                self._make_room()

    def _make_room(self) -> None:
        """Free a part of the memory at once, since finding the largest owners takes longer than dropping a segment."""
        goal = self._most_bytes * _KEPT_SHARE
        for owner in sorted(self._bytes_of, key=self._bytes_of.__getitem__, reverse=True):
            least = self._bytes_of[owner] // 2
            while self._bytes > goal and self._bytes_of.get(owner, 0) > least:
                self._drop_oldest(owner)
            if self._bytes <= goal:
                return

    def _drop_oldest(self, owner: str) -> None:
        known = self._segments[owner]
        self._count(owner, -_size(*known.popitem(last=False)))
        if not known:
            del self._segments[owner], self._bytes_of[owner]

    def _count(self, owner: str, size: int) -> None:
        self._bytes += size
        self._bytes_of[owner] = self._bytes_of.get(owner, 0) + size


def _size(segment: Segment, tokens: Tokens) -> int:
    return sys.getsizeof(segment[1]) + len(tokens) * tokens.itemsize + _ENTRY_BYTES

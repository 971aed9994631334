"""Finds the beginning of a marker at the end of a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Markers:
    """Strings that must not be split between text that is passed on and text that is held back."""

    __slots__ = ("_first_chars", "_longest", "_markers")

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = tuple(markers)
        self._first_chars = frozenset(marker[0] for marker in self._markers)
        self._longest = max(map(len, self._markers), default=0)

    def __bool__(self) -> bool:
        return bool(self._markers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._markers)

    def partial_length(self, text: str) -> int:
        """Return the length of the longest suffix of the text that is the beginning of a marker, but not all of it."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in self._first_chars:
                tail = text[at:]
                if any(marker.startswith(tail) for marker in self._markers):
                    return len(tail)
        return 0

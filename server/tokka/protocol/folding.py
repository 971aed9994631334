"""JSON values that grow in pieces, so that a plain response is written while its chunks arrive.

A token with 20 alternatives takes 8 KB as objects and 2 KB as JSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

Piece = bytes | bytearray | memoryview


class RawJson:
    """A value that is already JSON. Several chunks and a response may share it without a copy."""

    __slots__ = ("data",)

    def __init__(self, value: Any) -> None:
        self.data = orjson.dumps(value)


def dumps(value: Any) -> bytes:
    """Return the JSON of a value that may hold RawJson."""
    return orjson.dumps(value, default=_fragment)


def _fragment(value: Any) -> orjson.Fragment:
    if isinstance(value, RawJson):
        return orjson.Fragment(value.data)
    raise TypeError(type(value).__name__)


class Grown(ABC):
    """A JSON value in consecutive pieces."""

    __slots__ = ()

    @abstractmethod
    def pieces(self) -> list[Piece]: ...


class _Shared(Grown):
    """Pieces shared by several values, and one of this value's own."""

    __slots__ = ("_own", "_parts")

    def __init__(self) -> None:
        self._parts: list[Piece] = []
        self._own = bytearray()

    def __bool__(self) -> bool:
        return bool(self._parts or self._own)

    def _share(self, inner: Piece) -> None:
        if self._own:
            self._parts.append(self._own)
            self._own = bytearray()
        self._parts.append(inner)

    def _inner(self) -> list[Piece]:
        return [*self._parts, self._own]


class JsonText(_Shared):
    """A JSON string."""

    __slots__ = ()

    def add(self, text: str | RawJson) -> None:
        """Append text. RawJson, a whole JSON string, is shared and not copied."""
        if isinstance(text, RawJson):
            self._share(memoryview(text.data)[1:-1])
        else:
            self._own += orjson.dumps(text)[1:-1]

    def pieces(self) -> list[Piece]:
        return [b'"', *self._inner(), b'"']


class JsonList(_Shared):
    """A JSON array."""

    __slots__ = ()

    def extend(self, values: Sequence[Any] | RawJson) -> None:
        """Append values. RawJson, a whole JSON array, is shared and not copied."""
        is_shared = isinstance(values, RawJson)
        inner = memoryview(values.data if isinstance(values, RawJson) else orjson.dumps(values))[1:-1]
        if not inner:
            return
        if self:
            self._own += b","
        if is_shared:
            self._share(inner)
        else:
            self._own += inner

    def pieces(self) -> list[Piece]:
        return [b"[", *self._inner(), b"]"]


class JsonObject(Grown):
    """A JSON object of grown and plain values, with at least one field."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        # Adjacent plain fields are encoded together, because a response may have a thousand choices.
        plain: dict[str, Any] = {}
        for name, value in self._fields.items():
            if isinstance(value, Grown):
                pieces.append((b"," if pieces else b"{") + _leading(plain) + orjson.dumps(name) + b":")
                pieces += value.pieces()
                plain = {}
            else:
                plain[name] = value
        last = dumps(plain)[1:]
        if not pieces:
            return [b"{" + last]
        return [*pieces, b"," + last if plain else last]


def _leading(fields: Mapping[str, Any]) -> bytes:
    """Return the JSON of fields before another field, with a comma at the end."""
    return dumps(fields)[1:-1] + b"," if fields else b""


class JsonItems(Grown):
    """A JSON array of grown values."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Grown]) -> None:
        self._items = items

    def pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        for item in self._items:
            pieces.append(b"," if pieces else b"[")
            pieces += item.pieces()
        return [*pieces, b"]"] if pieces else [b"[]"]

"""The calls the parser library finds in a whole text, beside those that were read as they came. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from tokka.engine.reading.heads import Names, object_text

# A function's name, and its arguments.
Call = tuple[str, str]


def usable(found: Iterable[Call], names: Names) -> list[Call]:
    """Return the calls of functions that may be called, with arguments that are an object or break off."""
    return [
        (name, text)
        for name, arguments in found
        if names.may_be_called(name) and (text := _object(arguments)) is not None
    ]


def missing(ours: Sequence[Call], found: Sequence[Call]) -> list[Call] | None:
    """Return what was found beyond ours, in order; None if ours are not all among it, in the same order."""
    beyond = []
    matched = 0
    for call in found:
        if matched < len(ours) and _is_same(ours[matched], call):
            matched += 1
        else:
            beyond.append(call)
    return beyond if matched == len(ours) else None


def _object(arguments: str) -> str | None:
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments
    if isinstance(value, str):
        return object_text(value)
    if value is None:
        return "{}"
    return (arguments or "{}") if isinstance(value, dict) else None


def _is_same(ours: Call, found: Call) -> bool:
    if ours == found:
        return True
    try:
        return ours[0] == found[0] and bool(orjson.loads(ours[1]) == orjson.loads(found[1]))
    except orjson.JSONDecodeError:
        return False

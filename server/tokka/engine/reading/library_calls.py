"""Compares the tool calls that the parser library finds in a whole text with the calls already read. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from tokka.engine.reading.call_heads import Names, object_text

# A function's name, and its arguments as text.
Call = tuple[str, str]


def callable_ones(found: Iterable[Call], names: Names) -> list[Call]:
    """Return the calls of allowed functions with arguments that are a JSON object or incomplete."""
    return [
        (name, text)
        for name, arguments in found
        if names.may_be_called(name) and (text := _object(arguments)) is not None
    ]


def missed_calls(ours: Sequence[Call], found: Sequence[Call]) -> list[Call] | None:
    """Return the found calls beyond ours, in order; None if the found calls do not contain all of ours in order."""
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

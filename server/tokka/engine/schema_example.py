"""A small value that matches a JSON schema, for the scripted engine. Pure.

It ignores `not`, `if`, `contains`, `uniqueItems` and `dependent...`. For a pattern it only tries a few strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokka.protocol.json_schema import target

# Also a harmless shell command, because agents run the strings of their tool calls.
TEXT = "echo"
_MAX_DEPTH = 64
# Maximum values in an example.
_MAX_VALUES = 10_000
_OF_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "a@example.org",
    "hostname": "example.org",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.org",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
# Strings to try with a pattern.
_CANDIDATES = (
    TEXT,
    "",
    "a",
    "A",
    "a1",
    "A1",
    "aa",
    "aaa",
    "AAA",
    "0",
    "1",
    "10",
    "1000",
    "a-b",
    "a.b",
    *_OF_FORMATS.values(),
)
# Keywords by which a schema without a type shows the type that it describes.
_SIGNS = (
    ("object", ("properties", "required", "additionalProperties", "minProperties", "patternProperties")),
    ("array", ("items", "prefixItems", "minItems", "maxItems")),
    ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
)


class NoExampleError(Exception):
    """Every value of the schema contains itself, the example would be too large, or the schema is malformed."""


def example(schema: Any) -> Any:
    """Return a small value that matches the schema. Raises NoExampleError."""
    try:
        return _Examples(schema).of(schema, ())
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise NoExampleError from error


class _Examples:
    """The examples of one schema's parts. `refs`: the references that led to a part."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _MAX_VALUES

    def of(self, schema: Any, refs: tuple[str, ...]) -> Any:
        self._left -= 1
        if self._left < 0 or len(refs) > _MAX_DEPTH:
            raise NoExampleError
        if not isinstance(schema, dict):
            return TEXT
        if "$ref" in schema:
            reference = str(schema["$ref"])
            if reference in refs:
                raise NoExampleError
            return self.of(_merged(_without(schema, "$ref"), self._at(reference)), (*refs, reference))
        if parts := schema.get("allOf"):
            rest = _without(schema, "allOf")
            for part in parts:
                rest = _merged(rest, part)
            return self.of(rest, refs)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        for name in ("anyOf", "oneOf"):
            if alternatives := schema.get(name):
                return self._first([_merged(_without(schema, name), each) for each in alternatives], refs)
        return self._of_type(schema, refs)

    def _first(self, alternatives: list[Any], refs: tuple[str, ...]) -> Any:
        """Return the example of the first alternative that has one."""
        for alternative in alternatives:
            try:
                return self.of(alternative, refs)
            except NoExampleError:
                continue
        raise NoExampleError

    def _of_type(self, schema: Mapping[str, Any], refs: tuple[str, ...]) -> Any:
        match _type_of(schema):
            case "object":
                return self._object(schema, refs)
            case "array":
                items = schema.get("prefixItems", ())
                rest = schema.get("items", True)
                return [
                    self.of(items[at] if at < len(items) else rest, refs) for at in range(_size(schema, "minItems"))
                ]
            case "integer":
                return _number(schema, is_whole=True)
            case "number":
                return _number(schema, is_whole=False)
            case "boolean":
                return True
            case "null":
                return None
        return _string(schema)

    def _object(self, schema: Mapping[str, Any], refs: tuple[str, ...]) -> dict[str, Any]:
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        least = _size(schema, "minProperties")
        names = list(schema.get("required", ()))
        names += [name for name in properties if name not in names][: max(0, least - len(names))]
        names += [f"field_{number}" for number in range(len(names), least)]
        return {name: self.of(properties.get(name, others), refs) for name in names}

    def _at(self, reference: str) -> Any:
        here = self._root
        for step in target(reference) or ():
            try:
                here = here[step]
            except (LookupError, TypeError):
                return {}
        return here


def _without(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != name}


def _merged(schema: Mapping[str, Any], part: Any) -> dict[str, Any]:
    """Return a schema that asks for the same as both. The later value of another keyword wins."""
    if not isinstance(part, dict):
        return dict(schema)
    merged = {**schema, **part}
    for name in ("properties", "$defs"):
        if name in schema and name in part:
            merged[name] = {**schema[name], **part[name]}
    if "required" in schema and "required" in part:
        merged["required"] = list(dict.fromkeys((*schema["required"], *part["required"])))
    return merged


def _type_of(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        return str(kind[0]) if kind else "string"
    if kind is not None:
        return str(kind)
    return next((name for name, signs in _SIGNS if any(sign in schema for sign in signs)), "string")


def _number(schema: Mapping[str, Any], *, is_whole: bool) -> int | float:
    low, high = _bound(schema, "minimum", "exclusiveMinimum"), _bound(schema, "maximum", "exclusiveMaximum")
    step = schema.get("multipleOf") or 1
    for value in _numbers(low, high, step):
        is_above = low is None or value > low or (value == low and schema.get("minimum") == low)
        is_below = high is None or value < high or (value == high and schema.get("maximum") == high)
        if is_above and is_below and not (is_whole and value != int(value)):
            return int(value) if value == int(value) else value
    raise NoExampleError


def _bound(schema: Mapping[str, Any], *names: str) -> float | None:
    """Return the given bound. An exclusive bound of JSON Schema's draft 4 is a boolean, which does not count."""
    given = [schema[name] for name in names if isinstance(schema.get(name), int | float) and schema[name] is not True]
    given = [value for value in given if value is not False]
    return given[-1] if given else None


def _numbers(low: float | None, high: float | None, step: float) -> Iterator[float]:
    """Yield numbers to try: small ones, multiples of the step beside the bounds, and the middle."""
    yield from (1, 0, step)
    for bound in (low, high):
        if bound is not None:
            first = math.floor(bound / step)
            yield from ((first + more) * step for more in (0, 1, 2, -1))
    if low is not None and high is not None:
        yield (low + high) / 2


def _string(schema: Mapping[str, Any]) -> str:
    least, most = _size(schema, "minLength"), schema.get("maxLength")
    text = _OF_FORMATS.get(str(schema.get("format")), TEXT)
    if pattern := schema.get("pattern"):
        text = next((each for each in _CANDIDATES if _matches(pattern, each, least, most)), text)
    text = text.ljust(least, "o")
    return text if most is None else text[: int(most)]


def _size(schema: Mapping[str, Any], name: str) -> int:
    """Return a least size. Raises NoExampleError if it is not a number or too large."""
    size = schema.get(name, 0)
    if not isinstance(size, int) or size > _MAX_VALUES:
        raise NoExampleError
    return size


def _matches(pattern: str, text: str, least: int, most: int | None) -> bool:
    if len(text) < least or (most is not None and len(text) > most):
        return False
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False

"""JSON schemas for structured output: bounded, and only with keywords that are enforced in full.

The engine would silently ignore a keyword that it cannot enforce, and the output would not match the schema. Unknown
keywords are therefore refused, and the error names their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import unquote

import orjson
from pydantic_core import PydanticCustomError

from tokka.protocol.common import invalid, unsupported

MAX_SCHEMA_BYTES = 128 * 1024
MAX_SCHEMA_DEPTH = 32
MAX_SUBSCHEMAS = 4096
MAX_PATTERN_CHARS = 2048
# Maximum item and property counts. Each item is a rule of the grammar; a longer list takes seconds to compile.
MAX_ITEMS = 4096
MAX_LENGTH = 1_000_000
# Maximum of `multipleOf` without its decimal point: its automaton has about this many states.
MAX_MULTIPLE = 1000
MAX_DECIMALS = 6
# Maximum number. Beyond it, different whole numbers become the same when a bound is read.
MAX_NUMBER = 2**53

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
# Keywords that restrict no value.
ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "example", "$comment", "deprecated", "readOnly", "writeOnly"),
        "discriminator",
    }
)
# Allowed at the root only, without effect: schemas are read as draft 2020-12.
ROOT_ONLY = ("$schema", "$id")
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SINGLES = frozenset({"items", "additionalProperties"})

# The steps from a schema's root to one of its parts.
Path = tuple[str | int, ...]


def checked_schema(value: Any) -> dict[str, Any]:
    """Return a schema, given as an object or as text, that can be enforced in full. Errors name the place at fault."""
    value = parsed(value)
    if not isinstance(value, dict):
        raise invalid("Input should be an object: a JSON Schema")
    schema = {name: part for name, part in value.items() if name not in ROOT_ONLY}
    try:
        text = orjson.dumps(schema)
    except orjson.JSONEncodeError as error:
        raise invalid(f"A schema must be JSON with numbers of at most 64 bits ({error})") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise invalid(f"A schema may have at most {MAX_SCHEMA_BYTES} bytes; this one has {len(text)}")
    _Walk().check(schema)
    return cast(dict[str, Any], _tagged(schema)) if b'"discriminator"' in text else schema


def parsed(schema: Any) -> Any:
    """Parse a schema given as text; return any other value unchanged. Raises for text that is not JSON."""
    if not isinstance(schema, str):
        return schema
    if len(schema) > 2 * MAX_SCHEMA_BYTES:
        raise invalid(f"A schema may have at most {MAX_SCHEMA_BYTES} bytes; this one has {len(schema)}")
    try:
        return orjson.loads(schema)
    except orjson.JSONDecodeError as error:
        raise invalid(f"A schema given as a string must be JSON ({error})") from None


@contextmanager
def errors_below(place: str) -> Iterator[None]:
    """Add `place` before the paths in errors of a schema."""
    try:
        yield
    except PydanticCustomError as error:
        context = error.context or {}
        again = unsupported if error.type == "tokka_unsupported" else invalid
        raise again(context["reason"], f"{place}{context['at']}") from None


class _Walk:
    """One pass over a schema and its subschemas."""

    def __init__(self) -> None:
        self._places: set[Path] = set()
        # References by the place of the schema that holds them.
        self._references: dict[Path, str] = {}

    def check(self, schema: dict[str, Any]) -> None:
        self._schema(schema, (), 1)
        for path, reference in self._references.items():
            if target(reference) not in self._places:
                reason = f"$ref must point to a schema inside this one, like #/$defs/name; got {reference!r}"
                raise _at((*path, "$ref"), reason)
        self._check_loops()

    def _check_loops(self) -> None:
        """Refuse references that only lead to each other, because no value matches them."""
        ends: set[Path] = set()
        for path in self._references:
            seen: set[Path] = set()
            here: Path | None = path
            while here in self._references and here not in ends:
                if here in seen:
                    raise _at((*path, "$ref"), "$ref must not lead back to itself in a schema")
                seen.add(here)
                here = target(self._references[here])
            ends |= seen

    def _schema(self, schema: Any, path: Path, depth: int) -> None:
        if depth > MAX_SCHEMA_DEPTH:
            raise _at(path, f"A schema may nest at most {MAX_SCHEMA_DEPTH} levels deep")
        self._places.add(path)
        if len(self._places) > MAX_SUBSCHEMAS:
            raise _at(path, f"A schema may contain at most {MAX_SUBSCHEMAS} schemas")
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise _at(path, "Input should be a schema: an object, true or false")
        for name, value in schema.items():
            if not is_annotation(name):
                self._keyword(name, value, (*path, name))
                for step, below in _below(name, value):
                    self._schema(below, (*path, name, *step), depth + 1)
        _check_least_properties(schema, path)

    def _keyword(self, name: str, value: Any, path: Path) -> None:
        rule = KEYWORDS.get(name)
        if rule is None:
            raise unsupported(f"The keyword {name[:64]!r} cannot be enforced in a schema: leave it out", _shown(path))
        is_right, should_be = rule
        if not is_right(value):
            raise _at(path, f"Input should be {should_be} in a schema")
        if name == "$ref":
            self._references[path[:-1]] = value


def is_annotation(name: str) -> bool:
    return name in ANNOTATIONS or (name.startswith("x-") and name != "x-guidance")


def is_enforced(name: str, value: Any) -> bool:
    """Return whether the keyword is enforced with this value. Subschemas are not checked."""
    rule = KEYWORDS.get(name)
    return rule is not None and rule[0](value)


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly below a checked one, each with the steps to it, like `.properties.age`."""
    for name, value in schema.items():
        for step, below in _below(name, value):
            yield _shown((name, *step)), below


def _below(name: str, value: Any) -> Iterator[tuple[Path, Any]]:
    """Yield the schemas in a keyword's value, with the steps to them."""
    if name in _MAPS:
        for key, schema in value.items():
            yield (key,), schema
    elif name in _LISTS:
        for place, schema in enumerate(value):
            yield (place,), schema
    elif name in _SINGLES:
        yield (), value


def mapped(name: str, value: Any, change: Callable[[Path, Any], Any]) -> Any:
    """Return a keyword's value with each schema in it changed. `change` gets the steps to a schema, and the schema."""
    if name in _MAPS:
        return {key: change((name, key), schema) for key, schema in value.items()}
    if name in _LISTS:
        return [change((name, place), schema) for place, schema in enumerate(value)]
    return change((name,), value) if name in _SINGLES else value


def _tagged(schema: Any) -> Any:
    """Return a checked schema whose alternatives require their discriminator property, if one is named.

    The name comes from OpenAPI's `discriminator`. A class with a default value for the property does not require it.
    """
    if not isinstance(schema, dict):
        return schema
    tagged = {name: mapped(name, part, lambda _, below: _tagged(below)) for name, part in schema.items()}
    discriminator = schema.get("discriminator")
    tag = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
    if isinstance(tag, str):
        for name in ("oneOf", "anyOf"):
            if name in tagged:
                tagged[name] = [_requiring(tag, alternative) for alternative in tagged[name]]
    return tagged


def _requiring(tag: str, schema: Any) -> Any:
    if not isinstance(schema, dict) or tag in schema.get("required", ()):
        return schema
    return {**schema, "required": [*schema.get("required", ()), tag]}


def most_properties_asked_for(schema: Mapping[str, Any]) -> int:
    # The model may repeat a name outside of `properties`, and a repeated name counts once.
    return len(schema.get("required", ())) + 1


def _check_least_properties(schema: Mapping[str, Any], path: Path) -> None:
    most = most_properties_asked_for(schema)
    if schema.get("minProperties", 0) > most:
        raise _at(
            (*path, "minProperties"),
            f"Input should be at most {most} in a schema: one more than the required properties",
        )


def target(reference: str) -> Path | None:
    """Return the path that a local reference points to, or None. A step into a list is a number."""
    if reference == "#":
        return ()
    if not reference.startswith("#/"):
        return None
    steps = [unquote(step).replace("~1", "/").replace("~0", "~") for step in reference[2:].split("/")]
    return tuple(
        int(step) if at and steps[at - 1] in _LISTS and step.isdecimal() else step for at, step in enumerate(steps)
    )


def _at(path: Path, reason: str) -> PydanticCustomError:
    return invalid(reason, _shown(path))


def _shown(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _is_multiple(value: Any) -> bool:
    if not _is_number(value) or value <= 0:
        return False
    scaled = value * 10**MAX_DECIMALS
    digits = f"{value:.{MAX_DECIMALS}f}".rstrip("0").replace(".", "")
    return math.isclose(scaled, round(scaled), rel_tol=1e-12) and 0 < int(digits or 0) <= MAX_MULTIPLE


def _is_count(most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_type(value: Any) -> bool:
    if isinstance(value, str):
        return value in TYPES
    return _is_strings(value) and bool(value) and all(name in TYPES for name in value)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value) and len({*value}) == len(value)


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_patterns(value: Any) -> bool:
    return isinstance(value, dict) and all(len(pattern) <= MAX_PATTERN_CHARS for pattern in value)


def _is_exact(value: Any) -> bool:
    """Return whether every reader of JSON gets the same numbers from the value."""
    if isinstance(value, dict):
        return all(map(_is_exact, value.values()))
    if isinstance(value, list):
        return all(map(_is_exact, value))
    return not isinstance(value, int | float) or abs(value) <= MAX_NUMBER


_NUMBER = (_is_number, "a number of at most 2**53")
_LIST = (_is_list, "a non-empty list of schemas")
_MAP = (_is_map, "an object of schemas")
_COUNT = f"a whole number from 0 to {MAX_ITEMS}"
_CHARS = f"a whole number from 0 to {MAX_LENGTH}"

# The enforced keywords: a check of the value, and a description of valid values.
KEYWORDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one or more of {', '.join(TYPES)}"),
    "enum": (
        lambda value: _is_list(value) and _is_exact(value),
        "a non-empty list of values, with numbers of at most 2**53",
    ),
    "const": (_is_exact, "a value with numbers of at most 2**53"),
    "$ref": (lambda value: isinstance(value, str), "a string"),
    "$defs": _MAP,
    "definitions": _MAP,
    "anyOf": _LIST,
    "oneOf": _LIST,
    "allOf": _LIST,
    "properties": _MAP,
    "patternProperties": (_is_patterns, f"an object of schemas by patterns of at most {MAX_PATTERN_CHARS} characters"),
    "additionalProperties": (lambda value: isinstance(value, dict | bool), "a schema"),
    "required": (_is_strings, "a list of different names"),
    "minProperties": (_is_count(MAX_ITEMS), _COUNT),
    "maxProperties": (_is_count(MAX_ITEMS), _COUNT),
    "items": (lambda value: isinstance(value, dict | bool), "one schema (for a list of them use prefixItems)"),
    "prefixItems": _LIST,
    "minItems": (_is_count(MAX_ITEMS), _COUNT),
    "maxItems": (_is_count(MAX_ITEMS), _COUNT),
    "minLength": (_is_count(MAX_LENGTH), _CHARS),
    "maxLength": (_is_count(MAX_LENGTH), _CHARS),
    "pattern": (
        lambda value: isinstance(value, str) and len(value) <= MAX_PATTERN_CHARS,
        f"a regular expression of at most {MAX_PATTERN_CHARS} characters",
    ),
    "format": (lambda value: isinstance(value, str) and value in FORMATS, f"one of {', '.join(FORMATS)}"),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": (
        _is_multiple,
        f"a positive number with at most {MAX_DECIMALS} decimals, and at most {MAX_MULTIPLE} without its decimal point",
    ),
}

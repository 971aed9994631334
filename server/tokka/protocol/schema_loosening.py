"""Loosen the schemas of functions that are not strict: remove unenforceable keywords if that only allows more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic_core import PydanticCustomError

from tokka.protocol.annotations import allow_null
from tokka.protocol.json_schema import (
    MAX_SCHEMA_DEPTH,
    ROOT_ONLY,
    Path,
    checked_schema,
    is_annotation,
    is_enforced,
    mapped,
    most_properties_asked_for,
    target,
)

# Look-around and back-references, which the engine's regular expressions do not support.
_BEYOND_EXPRESSIONS = re.compile(r"\(\?<?[=!]|\\[1-9]|\\k<")
# The keywords of the level `bare`: names, types and values.
_BARE = frozenset(
    {
        *("type", "enum", "const", "$ref", "$defs", "definitions", "anyOf", "allOf"),
        *("properties", "required", "additionalProperties", "items", "prefixItems"),
    }
)
# How much of a schema is kept. enforced: without unenforceable keywords. compiled: also without keywords that are known
# to be refused when compiled. bare: names, types and values only. any: nothing.
Level = Literal["enforced", "compiled", "bare", "any"]
# Levels to try in this order if a schema cannot be compiled.
LOOSER_LEVELS: tuple[Level, ...] = ("compiled", "bare", "any")
# Pairs of keywords. Without the first one, the second one would forbid more.
_READ_BY = (
    ("properties", "additionalProperties"),
    ("patternProperties", "additionalProperties"),
    ("prefixItems", "items"),
)
# Keywords that may declare names of an object. If they are removed, the object must be open to allow the names.
_DECLARING = ("if", "then", "else", "dependentSchemas", "dependencies")


class _Narrower(Exception):
    """The schema would forbid more without one of its keywords."""


def loosened(schema: Mapping[str, Any], level: Level = "enforced") -> dict[str, Any] | None:
    """Return the schema loosened to `level`; None for `any`, and if it would forbid more or is refused."""
    if level == "any":
        return None
    try:
        return checked_schema(_Loosening(level).root(schema))
    except (_Narrower, PydanticCustomError):
        return None


class _Loosening:
    """One pass over a schema and its subschemas. No kept keyword negates, so looser parts make a looser whole."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._places: set[Path] = set()
        # Schemas with a reference.
        self._referring: list[dict[str, Any]] = []

    def root(self, schema: Mapping[str, Any]) -> Any:
        loose = self._schema((), {name: part for name, part in schema.items() if name not in ROOT_ONLY})
        for referring in self._referring:
            if target(referring["$ref"]) not in self._places:
                del referring["$ref"]
                if _may_be_object(referring):
                    # The removed reference may have declared names.
                    referring.setdefault("additionalProperties", True)
        return loose

    def _schema(self, path: Path, schema: Any, depth: int = 1) -> Any:
        self._places.add(path)
        if not isinstance(schema, dict) or depth >= MAX_SCHEMA_DEPTH:
            return schema if isinstance(schema, bool) else True
        if "$id" in schema:
            # `$id` changes the base of the references below it.
            raise _Narrower
        loose: dict[str, Any] = {}
        for name, part in _one_of_as_any_of(schema).items():
            if is_annotation(name):
                loose[name] = part
            elif is_enforced(name, part) and self._is_kept(name, part):
                loose[name] = mapped(name, part, lambda step, below: self._schema((*path, *step), below, depth + 1))
        for name, other in _READ_BY:
            if name in schema and name not in loose:
                loose.pop(other, None)
                if other == "additionalProperties":
                    loose[other] = True
        _mend(schema, loose)
        if "$ref" in loose:
            self._referring.append(loose)
        return loose

    def _is_kept(self, name: str, value: Any) -> bool:
        match self._level:
            case "enforced":
                return True
            case "compiled":
                return not _is_refused(name, value)
            case "bare":
                return name in _BARE
        return False


def _one_of_as_any_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with `anyOf` for `oneOf`, which would refuse values of loosened alternatives that overlap."""
    if "oneOf" not in schema:
        return schema
    if "anyOf" in schema:
        return {name: part for name, part in schema.items() if name != "oneOf"}
    return {"anyOf" if name == "oneOf" else name: part for name, part in schema.items()}


def _is_refused(name: str, value: Any) -> bool:
    if name == "pattern":
        return bool(_BEYOND_EXPRESSIONS.search(value))
    # Several patterns may overlap, which is not known here.
    return name == "patternProperties" and (len(value) > 1 or any(map(_BEYOND_EXPRESSIONS.search, value)))


def _mend(schema: dict[str, Any], loose: dict[str, Any]) -> None:
    """Keep parts of a removed keyword in `loose`, if another form can express them."""
    required = schema.get("required")
    if isinstance(required, list) and "required" not in loose:
        loose["required"] = list(dict.fromkeys(name for name in required if isinstance(name, str)))
    if loose.get("minProperties", 0) > most_properties_asked_for(loose):
        del loose["minProperties"]
    if _may_declare_more(schema):
        loose.setdefault("additionalProperties", True)
    if schema.get("nullable") is True:
        allow_null(loose)


def _may_declare_more(schema: dict[str, Any]) -> bool:
    """Return whether the removed keywords of a schema may declare names of an object."""
    is_open = schema.get("unevaluatedProperties", False) is not False
    return _may_be_object(schema) and (is_open or any(name in schema for name in _DECLARING))


def _may_be_object(schema: dict[str, Any]) -> bool:
    types = schema.get("type", "object")
    return bool(types == "object" or (isinstance(types, list) and "object" in types))

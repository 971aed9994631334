"""Close the objects of a schema to the names they declare. Pure.

Where any name may follow, a weak model invents names without end. In JSON Schema, an object is open by default. For
generation, it is closed unless it has `additionalProperties`, `patternProperties` or no `properties` at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokka.protocol.json_schema import MAX_SUBSCHEMAS, mapped, target

# Keywords whose subschemas apply to the same value as the schema around them.
_UNIONS = ("anyOf", "oneOf")
_PARTS = ("allOf", *_UNIONS)
_DEFINITIONS = ("$defs", "definitions")


def closed(schema: dict[str, Any], *, is_arguments: bool = False) -> dict[str, Any]:
    """Return a checked schema whose objects allow declared names only; unchanged if it would get too large.

    `is_arguments`: close the root object even if it declares no names.
    """
    closing = _Closing(schema)
    try:
        result: dict[str, Any] = closing.close(schema)
    except _TooLarge:
        return schema
    names = closing.names_of(schema)
    if is_arguments and not (names.are_open or names.are_declared):
        result["additionalProperties"] = False
    if closing.opened:
        result["$defs"] = {**result.get("$defs", {}), **closing.opened}
    return result


class _TooLarge(Exception):
    """The closed schema would be many times as large."""


@dataclass(frozen=True, slots=True)
class _Names:
    """The names that a schema and its subschemas for the same value declare."""

    declared: Mapping[str, None]
    # It declares some names, or explicitly none.
    are_declared: bool = False
    # It allows undeclared names, or fixes the whole value.
    are_open: bool = False


class _Closing:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        # Parts of other schemas, by new names. They stay open, because the schema around them is closed.
        self.opened: dict[str, Any] = {}
        self._opened_as: dict[str, str] = {}
        self._known: dict[int, _Names] = {}
        self._added = 0

    def close(self, schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        if not _is_composed(schema):
            return self._with(schema, self.close)
        result = self._with(schema, self._open)
        names = self.names_of(schema)
        if names.are_open or not names.are_declared or schema.get("minProperties", 0) > len(names.declared):
            return result
        unions = [name for name in _UNIONS if name in schema]
        if not unions:
            return self._only(result, names.declared)
        # Each alternative allows its own names and the names of all schemas beside it.
        for union in unions:
            beside = self._names({name: part for name, part in schema.items() if name != union}).declared
            result[union] = [
                self._only({} if part is True else part, {**beside, **self.names_of(before).declared})
                if part is not False
                else part
                for part, before in zip(result[union], schema[union], strict=True)
            ]
        return result

    def names_of(self, schema: Any) -> _Names:
        """Return the names of a schema inside the root."""
        if (known := self._known.get(id(schema))) is None:
            # A reference may lead back here.
            self._known[id(schema)] = _Names({})
            known = self._known[id(schema)] = self._names(schema)
        return known

    def _names(self, schema: Any) -> _Names:
        if not isinstance(schema, dict):
            return _Names({})
        parts = [self.names_of(part) for name in _PARTS for part in schema.get(name, ())]
        if "$ref" in schema:
            parts.append(self.names_of(self._at(schema["$ref"])))
        declared = dict.fromkeys((*schema.get("properties", ()), *schema.get("required", ())))
        for part in parts:
            declared |= part.declared
        is_open = schema.get("additionalProperties", False) is not False
        holds_all = not schema.keys().isdisjoint(("patternProperties", "const", "enum"))
        return _Names(
            declared,
            "properties" in schema or any(part.are_declared for part in parts),
            is_open or holds_all or any(part.are_open for part in parts),
        )

    def _only(self, schema: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """Return the schema closed to its own properties and these names."""
        own = schema.get("properties", {})
        others = {name: True for name in names if name not in own}
        self._added += len(others)
        if self._added > MAX_SUBSCHEMAS:
            raise _TooLarge
        return {**schema, "properties": {**own, **others}, "additionalProperties": False}

    def _open(self, schema: Any) -> Any:
        """Return a schema as part of another one: close the objects in it, but not the schema itself."""
        return self._with(schema, self._open) if isinstance(schema, dict) else schema

    def _with(self, schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
        """Return a schema with the objects in it closed, and `change` applied to subschemas for the same value."""

        def changed(name: str, value: Any) -> Any:
            if name == "$ref":
                return self._reference(value) if change == self._open else value
            return mapped(name, value, lambda _, below: (change if name in _PARTS else self.close)(below))

        return {name: changed(name, value) for name, value in schema.items()}

    def _reference(self, reference: str) -> str:
        """Return a reference to an open copy of the same schema."""
        name = self._opened_as.get(reference)
        if name is None:
            name = self._opened_as[reference] = self._new_name()
            part = self._at(reference)
            if isinstance(part, dict):
                part = {name: value for name, value in part.items() if name not in _DEFINITIONS}
            self.opened[name] = self._open(part)
        return f"#/$defs/{name}"

    def _new_name(self) -> str:
        number = len(self._opened_as)
        while (name := f"part-{number}") in {*self._root.get("$defs", ()), *self._opened_as.values()}:
            number += 1
        return name

    def _at(self, reference: str) -> Any:
        here: Any = self._root
        for step in target(reference) or ():
            here = here[step]
        return here


def _is_composed(schema: Mapping[str, Any]) -> bool:
    """Return whether to close an object here: it declares names, or several schemas apply to it together."""
    if "properties" in schema or "required" in schema or len(schema.get("allOf", ())) > 1:
        return True
    return sum(name in schema for name in (*_PARTS, "$ref")) > 1

"""Objects hold what their schema declares: where any name may follow, a weak model invents names without end. Pure.

JSON Schema leaves an object open unless it says otherwise. When we generate one, it is closed unless it says otherwise:
by `additionalProperties`, by `patternProperties`, or by no `properties` at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokka.protocol.json_schema import MAX_SUBSCHEMAS, mapped, target

# Keywords whose schemas hold for the same value as the one they are in.
_UNIONS = ("anyOf", "oneOf")
_PARTS = ("allOf", *_UNIONS)
_DEFINITIONS = ("$defs", "definitions")


def closed(schema: dict[str, Any], *, is_arguments: bool = False) -> dict[str, Any]:
    """Return a checked schema of which every object holds declared names only.

    `is_arguments`: the object itself holds no others even if it declares none.
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
    """Closed, the schema would be many times as large."""


@dataclass(frozen=True, slots=True)
class _Names:
    """What a schema says of the names in an object, itself and by those that hold for the same value."""

    declared: Mapping[str, None]
    # It declares some, or none of them on purpose.
    are_declared: bool = False
    # It lets in what it does not declare, or holds the whole value.
    are_open: bool = False


class _Closing:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        # Schemas that others are made of, by new names: not closed, since what they are part of is.
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
        # Each alternative has its own names and those of all that holds beside it.
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
        """Return the names of a schema in the root."""
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
        """Return a schema with these properties beside its own, and no others."""
        own = schema.get("properties", {})
        others = {name: True for name in names if name not in own}
        self._added += len(others)
        if self._added > MAX_SUBSCHEMAS:
            raise _TooLarge
        return {**schema, "properties": {**own, **others}, "additionalProperties": False}

    def _open(self, schema: Any) -> Any:
        """Return a schema that is part of another one: the objects in it are closed, it is not."""
        return self._with(schema, self._open) if isinstance(schema, dict) else schema

    def _with(self, schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
        """Return a schema with the objects in it closed, and those that hold for the same value changed."""

        def changed(name: str, value: Any) -> Any:
            if name == "$ref":
                return self._reference(value) if change == self._open else value
            return mapped(name, value, lambda _, below: (change if name in _PARTS else self.close)(below))

        return {name: changed(name, value) for name, value in schema.items()}

    def _reference(self, reference: str) -> str:
        """Return a reference to the same schema as part of another one."""
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
    """Whether an object is to be closed here: it declares names, or is made of several schemas that hold together."""
    if "properties" in schema or "required" in schema or len(schema.get("allOf", ())) > 1:
        return True
    return sum(name in schema for name in (*_PARTS, "$ref")) > 1

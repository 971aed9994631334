"""Annotations: schema keywords that restrict no value. They are removed from schemas that are not strict. Pure.

JSON Schema treats unknown keywords and any format as annotations. OpenAPI has some of its own.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator

from tokka.protocol.json_schema import (
    FORMATS,
    KEYWORDS,
    MAX_SCHEMA_DEPTH,
    checked_schema,
    is_annotation,
    mapped,
    parsed,
)

# Not enforced here, but not ignored either: they restrict values, or change the meaning of other keywords.
_RULES = frozenset(
    {
        *("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
        *("additionalItems", "extends", "disallow", "divisibleBy", "x-guidance"),
    }
)


def without_annotations(schema: Any, depth: int = 1) -> Any:
    """Return an unchecked schema without its annotations. `nullable` becomes a type."""
    if not isinstance(schema, dict) or depth > MAX_SCHEMA_DEPTH:
        return schema
    bare = {name: _below(name, value, depth) for name, value in schema.items() if not _says_nothing(name, value)}
    if schema.get("nullable") is True:
        allow_null(bare)
    return bare


def allow_null(schema: dict[str, Any]) -> None:
    """Change a schema so that it allows null, as `nullable` of OpenAPI 3.0 does."""
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        schema["type"] = types if "null" in types else [*types, "null"]
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    values = schema.get("enum")
    if isinstance(values, list) and None not in values:
        schema["enum"] = [*values, None]


def _below(name: str, value: Any, depth: int) -> Any:
    try:
        return mapped(name, value, lambda _, below: without_annotations(below, depth + 1))
    except (AttributeError, TypeError):
        # The value does not hold schemas. The check reports it later.
        return value


def _says_nothing(name: str, value: Any) -> bool:
    if name == "format":
        return isinstance(value, str) and value not in FORMATS
    if name in KEYWORDS or name in _RULES or name.startswith("$"):
        return name == "uniqueItems" and value is False
    return not is_annotation(name)


def checked_loose_schema(schema: Any) -> dict[str, Any]:
    """Return a schema as `checked_schema` does, but allow annotations of any kind."""
    return checked_schema(without_annotations(parsed(schema)))


LooseSchema = Annotated[dict[str, Any], PlainValidator(checked_loose_schema, json_schema_input_type=dict[str, Any])]

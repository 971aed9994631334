"""Keywords of a schema that say nothing of what is valid: left out of one that is not strict. Pure.

JSON Schema takes every keyword it does not know for an annotation, and any format. OpenAPI has some of its own.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator

from tokka.protocol.json_schema import (
    FORMATS,
    KEYWORDS,
    MAX_SCHEMA_DEPTH,
    is_annotation,
    mapped,
    parsed,
    schema_text,
)

# Not enforced here, and not to be ignored: they do say what is valid, or how to read what does.
_RULES = frozenset(
    {
        *("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
        *("additionalItems", "extends", "disallow", "divisibleBy", "x-guidance"),
    }
)


def without_annotations(schema: Any, depth: int = 1) -> Any:
    """Return a schema, which has not been checked, without what only annotates it; `nullable` becomes a type."""
    if not isinstance(schema, dict) or depth > MAX_SCHEMA_DEPTH:
        return schema
    bare = {name: _below(name, value, depth) for name, value in schema.items() if not _says_nothing(name, value)}
    if schema.get("nullable") is True:
        allow_null(bare)
    return bare


def allow_null(schema: dict[str, Any]) -> None:
    """Let null in, as `nullable` of OpenAPI 3.0 does."""
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
        # These are no schemas. The check says so.
        return value


def _says_nothing(name: str, value: Any) -> bool:
    if name == "format":
        return isinstance(value, str) and value not in FORMATS
    if name in KEYWORDS or name in _RULES or name.startswith("$"):
        return name == "uniqueItems" and value is False
    return not is_annotation(name)


def loose_schema_text(schema: Any) -> str:
    """As `schema_text`, with annotations of any kind."""
    return schema_text(without_annotations(parsed(schema)))


SchemaText = Annotated[str, PlainValidator(loose_schema_text, json_schema_input_type=dict[str, Any])]

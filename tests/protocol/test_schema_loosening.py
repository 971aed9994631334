"""Loosened schemas: unenforceable keywords are removed, the rest stays, and the result never forbids more."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.protocol.schemas import schemas, values
from tokka.protocol.json_schema import MAX_ITEMS, MAX_SCHEMA_DEPTH, checked_schema
from tokka.protocol.schema_loosening import Level, loosened

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 2}},
    "required": ["city"],
}


OPEN = {"additionalProperties": True}


def with_city(**more: Any) -> dict[str, Any]:
    return {**CITY, "properties": {"city": {**CITY["properties"]["city"], **more}}}


@pytest.mark.parametrize(
    "more",
    [
        *({"format": name} for name in ("path", "password", "int32", "binary", 5)),
        *({"contentEncoding": "base64"}, {"not": {"const": "x"}}, {"if": {}, "then": False}, {"maxlength": 3}),
        *({"x-guidance": {}}, {"$ref": "http://example.org/a"}, {"$ref": "#/$defs/none"}, {"oneOf": []}, {"enum": []}),
        *({"minimum": "1"}, {"exclusiveMaximum": True}, {"multipleOf": 0.1234567}, {"required": True}),
        {"maxItems": MAX_ITEMS + 1},
    ],
    ids=str,
)
def test_loosening_removes_only_the_unenforceable_keyword(more: dict[str, Any]) -> None:
    assert loosened(with_city(**more)) == CITY
    assert loosened({"$defs": {"d": {"items": with_city(**more)}}}) == {"$defs": {"d": {"items": CITY}}}


@pytest.mark.parametrize(
    "more",
    [{"uniqueItems": True}, {"propertyNames": {}}, {"dependentRequired": {}}, {"unevaluatedProperties": False}],
    ids=str,
)
def test_at_the_root_too(more: dict[str, Any]) -> None:
    assert loosened({**CITY, **more}) == CITY


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": "string", "nullable": False}, {"type": "string"}),
        ({"enum": ["a"], "nullable": True}, {"enum": ["a", None]}),
        ({"const": "a", "nullable": True}, {"enum": ["a", None]}),
        ({"required": ["a", "a", 5]}, {"required": ["a"]}),
        ({"minProperties": 9, "required": ["a"]}, {"required": ["a"]}),
        ({"properties": {"a": None, "b": "string"}}, {"properties": {"a": True, "b": True}}),
        # The meaning of the second keyword depends on the first one.
        ({"properties": [], "additionalProperties": False}, {"additionalProperties": True}),
        ({"prefixItems": [], "items": False}, {}),
        ({"items": [{"type": "string"}], "additionalItems": False}, {}),
        ({"$schema": "x", "$id": "y", "uniqueItems": True}, {}),
        ({"oneOf": [{"format": "path"}, {}]}, {"anyOf": [{}, {}]}),
        ({"oneOf": [{"not": {}}], "anyOf": [{}]}, {"anyOf": [{}]}),
        # `const` holds data, not a schema.
        ({"const": {"$ref": "x", "not": {}}, "not": {}}, {"const": {"$ref": "x", "not": {}}}),
        ({"$ref": "#/not", "not": {"type": "null"}, "type": "null"}, {"type": "null"}),
    ],
)
def test_loosening_keeps_the_meaning_of_other_keywords(schema: Any, expected: Any) -> None:
    assert loosened(schema) == expected


@pytest.mark.parametrize(
    "more",
    [
        *({name: {"properties": {"x": {}}}} for name in ("if", "then", "else")),
        *({"dependentSchemas": {"a": {}}}, {"unevaluatedProperties": True}, {"$ref": "#/nowhere"}),
    ],
    ids=str,
)
def test_an_object_that_may_declare_more_stays_open(more: dict[str, Any]) -> None:
    assert loosened({**CITY, **more}) == {**CITY, **OPEN}
    assert loosened({**CITY, **more, "additionalProperties": False}) == {**CITY, "additionalProperties": False}


def test_compiled_level_omits_keywords_that_the_compiler_refuses() -> None:
    patterns = {"^a": {"type": "null"}, "b$": {}}
    schema = {
        "properties": {"a": {"pattern": "a(?!b)"}, "b": {"pattern": "(?:a|b)"}, "c": {"pattern": r"(a)\1"}},
        "patternProperties": patterns,
        "additionalProperties": False,
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
    }
    assert loosened(schema, "compiled") == {
        "properties": {"a": {}, "b": {"pattern": "(?:a|b)"}, "c": {}},
        "additionalProperties": True,
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    }
    assert loosened({"patternProperties": {"^a": {}}}, "compiled") == {"patternProperties": {"^a": {}}}


def test_the_last_has_names_and_kinds() -> None:
    schema = {
        "properties": {
            "a": {"type": "string", "pattern": "(", "format": "date"},
            "b": {"type": "number", "minimum": 3},
        },
        "required": ["b"],
        "minProperties": 2,
        "additionalProperties": {"items": {"oneOf": [{"maxLength": 3}, {"const": 5}]}, "maxItems": 3},
    }
    assert loosened(schema, "bare") == {
        "properties": {"a": {"type": "string"}, "b": {"type": "number"}},
        "required": ["b"],
        "additionalProperties": {"items": {"anyOf": [{}, {"const": 5}]}},
    }
    assert loosened({"patternProperties": {"a": {}}, "additionalProperties": False}, "bare") == OPEN


def test_loosening_returns_none_when_the_meaning_would_change() -> None:
    assert loosened({"properties": {"a": {"$id": "x", "$ref": "#/not"}}}) is None
    assert loosened({"$defs": {"a": {"$ref": "#/$defs/a"}}, "not": {}}) is None


def test_loosening_allows_any_value_below_the_maximum_depth() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(MAX_SCHEMA_DEPTH):
        schema = {"properties": {"a": schema}}
    wide: Any = loosened(schema)
    for _ in range(MAX_SCHEMA_DEPTH - 1):
        assert wide
        wide = wide["properties"]["a"]
    assert wide is True


@given(schemas, st.lists(values, min_size=1, max_size=5), st.sampled_from(["enforced", "compiled", "bare"]))
def test_nothing_is_forbidden_that_was_allowed(schema: Any, values: list[Any], level: Level) -> None:
    wide = loosened(schema, level)
    assume(wide is not None)
    assert wide is not None
    assert checked_schema(wide) == wide
    try:
        before = jsonschema_rs.validator_for(schema)
    except ValueError:
        # A reference leads nowhere.
        assume(False)
    after = jsonschema_rs.validator_for(wide)
    for value in values:
        assert after.is_valid(value) or not before.is_valid(value), value

"""Closed schemas: a generated object has declared names only, unless its schema explicitly allows others."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from pydantic_core import PydanticCustomError

from tests.protocol.schemas import schemas, values
from tokka.protocol.closing import closed
from tokka.protocol.json_schema import MAX_SUBSCHEMAS, checked_schema

A, B, N = {"type": "string"}, {"type": "integer"}, {"type": "null"}
CLOSED = {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"a": A}}, {"properties": {"a": A}, **CLOSED}),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, **CLOSED}),
        # A required name counts as declared.
        (
            {"properties": {"a": A}, "required": ["a", "b"]},
            {"properties": {"a": A, "b": True}, "required": ["a", "b"], **CLOSED},
        ),
        (
            {"items": {"properties": {"a": {"properties": {}}}}},
            {"items": {"properties": {"a": {"properties": {}, **CLOSED}}, **CLOSED}},
        ),
        (
            {"$defs": {"d": {"properties": {"a": A}}}, "$ref": "#/$defs/d"},
            {"$defs": {"d": {"properties": {"a": A}, **CLOSED}}, "$ref": "#/$defs/d"},
        ),
        ({"anyOf": [{"properties": {"a": A}}, N]}, {"anyOf": [{"properties": {"a": A}, **CLOSED}, N]}),
        (
            {"allOf": [{"properties": {"a": A}}], "title": "t"},
            {"allOf": [{"properties": {"a": A}, **CLOSED}], "title": "t"},
        ),
        (
            {"patternProperties": {"^a": {"properties": {}}}},
            {"patternProperties": {"^a": {"properties": {}, **CLOSED}}},
        ),
    ],
    ids=str,
)
def test_an_object_is_closed_where_its_names_are_declared(schema: Any, expected: Any) -> None:
    assert closed(schema) == expected


OPEN: list[Any] = [
    {},
    {"type": "object"},
    {"type": "object", "required": ["a"]},
    {"properties": {"a": A}, "additionalProperties": True},
    {"properties": {"a": A}, "additionalProperties": {"type": "null"}},
    {"properties": {"a": A}, "patternProperties": {"^b": N}},
    {"properties": {"a": A}, "minProperties": 2},
    {"properties": {"a": A}, "enum": [{"a": "b", "c": 1}]},
    {"properties": {"a": A}, "const": {"c": 1}},
    {"properties": {"a": A}, "allOf": [{"properties": {"b": B}}, {"additionalProperties": True}]},
    {"const": {"properties": {}}, "examples": [{"properties": {}}]},
    True,
]


@pytest.mark.parametrize("schema", OPEN, ids=str)
def test_an_object_stays_open_where_its_schema_says_so(schema: Any) -> None:
    assert closed({"properties": {"x": schema}}) == {"properties": {"x": schema}, **CLOSED}


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "object", "properties": {}}], ids=str)
def test_arguments_without_properties_are_none(schema: Any) -> None:
    assert closed(schema, is_arguments=True) == {**schema, **CLOSED}
    nested = {"properties": {"x": {"type": "object"}}}
    assert closed(nested, is_arguments=True)["properties"]["x"] == {"type": "object"}


@pytest.mark.parametrize("schema", [{"additionalProperties": True}, {"patternProperties": {"a": {}}}], ids=str)
def test_arguments_that_are_open_on_purpose_stay_open(schema: Any) -> None:
    assert closed(schema, is_arguments=True) == schema


def fits(schema: Any, *values: Any) -> list[bool]:
    validator = jsonschema_rs.Draft202012Validator(closed(checked_schema(schema)))
    return [validator.is_valid(value) for value in values]


def test_composed_schema_is_closed_as_a_whole() -> None:
    base = {"type": "object", "properties": {"a": A}, "required": ["a"]}
    schema = {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": B}}], "$defs": {"base": base}}
    assert fits(schema, {"a": "x", "b": 1}, {"a": "x", "b": "x"}, {"b": 1}, {"a": "x", "c": 1}) == [
        True,
        False,
        False,
        False,
    ]
    # The same schema is closed where it stands alone.
    schema = {"properties": {"whole": schema, "alone": {"$ref": "#/$defs/base"}}, "$defs": {"base": base}}
    assert fits(schema, {"whole": {"a": "x", "b": 1}}, {"alone": {"a": "x"}}, {"alone": {"a": "x", "b": 1}}) == [
        True,
        True,
        False,
    ]


def test_properties_beside_a_reference_are_closed_together() -> None:
    schema = {
        "$ref": "#/$defs/base",
        "properties": {"b": B},
        "$defs": {"base": {"properties": {"a": A}, "required": ["a"]}},
    }
    assert fits(schema, {"a": "x", "b": 1}, {"b": 1}, {"a": "x", "c": 1}) == [True, False, False]


def test_alternative_allows_its_own_and_the_shared_properties() -> None:
    cat, dog = ({"properties": {name: {"type": "integer"}}, "required": [name]} for name in ("lives", "tricks"))
    schema = {"type": "object", "properties": {"name": A}, "required": ["name"], "anyOf": [cat, dog]}
    values: list[Any] = [{"name": "x", "lives": 1}, {"name": "x", "tricks": 1}]
    assert fits(schema, *values, {"lives": 1}, {"name": "x"}, {"name": "x", "lives": 1, "age": 1}) == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert fits({**schema, "oneOf": schema.pop("anyOf")}, *values) == [True, True]


def test_alternatives_of_required_keep_the_shared_properties() -> None:
    schema = {"properties": {"a": A, "b": B}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    assert fits(schema, {"a": "x"}, {"b": 1}, {"a": "x", "b": 1}, {}, {"a": "x", "c": 1}) == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_a_schema_that_refers_to_itself_is_closed_at_every_depth() -> None:
    tree = {"type": "object", "properties": {"below": {"type": "array", "items": {"$ref": "#"}}, "name": A}}
    assert fits(tree, {"below": [{"below": [], "name": "x"}]}, {"below": [{"age": 1}]}) == [True, False]
    composed = {
        "allOf": [{"$ref": "#/$defs/t"}, {"properties": {"x": A}}],
        "$defs": {"t": {**tree, "properties": {"below": {"$ref": "#/$defs/t"}}}},
    }
    assert fits(composed, {"below": {"below": {}}, "x": "y"}, {"below": {"x": "y"}}) == [True, False]
    cycle = {
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"x": A}}],
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": A}}]}},
    }
    assert fits(cycle, {"x": "1", "y": "2"})[0]


def test_names_of_our_own_are_nobody_s() -> None:
    base = {"properties": {"a": A}}
    defs = {"part-0": base, "part-1": {"properties": {"b": B}}}
    schema = {"allOf": [{"$ref": "#/$defs/part-0"}, {"$ref": "#/$defs/part-1"}], "$defs": defs}
    assert fits(schema, {"a": "x", "b": 1}, {"a": 1}, {"b": "x"}, {"c": 1}) == [True, False, False, False]


def test_schema_stays_open_when_closing_would_make_it_too_large() -> None:
    names = {f"p{i}": True for i in range(200)}
    schema = {
        "$defs": {"d": {"properties": names}},
        "anyOf": [{"$ref": "#/$defs/d", "properties": {f"q{i}": A}} for i in range(100)],
    }
    assert MAX_SUBSCHEMAS < 200 * 100
    assert closed(schema) == schema


@given(schemas, values)
def test_value_of_the_closed_schema_fits_the_original_schema(schema: Any, value: Any) -> None:
    try:
        checked = checked_schema(schema)
    except PydanticCustomError:
        return
    if jsonschema_rs.is_valid(closed(checked), value):
        assert jsonschema_rs.is_valid(checked, value)

"""JSON schemas for structured output: which ones are refused, and the place that the error names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from tokka.protocol.json_schema import (
    ANNOTATIONS,
    FORMATS,
    KEYWORDS,
    MAX_ITEMS,
    MAX_PATTERN_CHARS,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    MAX_SUBSCHEMAS,
    checked_schema,
    subschemas,
)


def refusal(schema: Any) -> PydanticCustomError:
    with pytest.raises(PydanticCustomError) as caught:
        checked_schema(schema)
    return caught.value


def place(schema: Any) -> str:
    context = refusal(schema).context
    assert context is not None
    at: str = context["at"]
    return at


def each(keyword: str, *values: Any) -> list[tuple[str, Any]]:
    return [(keyword, value) for value in values]


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels - 1):
        schema = {"properties": {"a": schema}}
    return schema


UNENFORCED = [
    *("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
    *("additionalItems", "contentEncoding", "contentMediaType", "contentSchema", "$anchor", "$dynamicRef", "$id"),
    *("$recursiveRef", "nullable", "maxlength", "x-guidance", "$vocabulary", "id", "extends", ""),
]


@pytest.mark.parametrize("name", UNENFORCED)
def test_a_keyword_that_would_be_ignored_is_refused_at_its_place(name: str) -> None:
    error = refusal({"type": "object", "properties": {"age": {"type": "integer", name: True}}})
    assert (error.type, error.context and error.context["at"]) == ("tokka_unsupported", f".properties.age.{name}")


@pytest.mark.parametrize("name", ["not", "x-guidance", "contains"])
def test_it_is_refused_at_the_root_too(name: str) -> None:
    assert place({name: {}}) == f".{name}"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        *each("type", "text", "", [], ["string", "string"], ["string", 1], None, {}),
        *each("enum", [], {}, "a", None, [2**60], [[{"a": 2**60}]]),
        *each("const", 2**60, -(2**60), [1e300]),
        *(case for name in ("anyOf", "oneOf", "allOf", "prefixItems") for case in each(name, [], {}, "a", None)),
        *(case for name in ("properties", "patternProperties", "$defs", "definitions") for case in each(name, [], "a")),
        *each("items", [{}], "a", None),
        *each("additionalProperties", [], "a", None),
        *each("required", "a", {}, [1], ["a", "a"], None),
        *each("minItems", -1, 1.5, "1", True, MAX_ITEMS + 1),
        *each("maxItems", -1, MAX_ITEMS + 1, None),
        *each("minProperties", 2, -1, "1"),
        *each("maxLength", -1, 10**7, 2.0, False),
        *each("minLength", -1, 10**7),
        *each("pattern", 1, None, "a" * (MAX_PATTERN_CHARS + 1)),
        *each("format", "int32", "password", "regex", 1, None),
        *each("minimum", "1", True, 1e300, 2**53 + 1, None),
        *each("exclusiveMaximum", True, [], -(2**60)),
        *each("multipleOf", 0, -1, 999983, 1e-7, 1e300, "2", True, 0.1234567),
        *each("$ref", 1, "a", "#a", "#/$defs/a", "http://a/b", "file:///etc/passwd", "#/type", "#/"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_value_is_refused_at_its_place(keyword: str, value: Any) -> None:
    assert place({"type": "object", "properties": {"a": {keyword: value}}}) == f".properties.a.{keyword}"


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        ({"anyOf": [{}, 5]}, ".anyOf[1]"),
        ({"properties": {"a": 5}}, ".properties.a"),
        (
            {"properties": {"a": {"items": {"prefixItems": [True, {"not": {}}]}}}},
            ".properties.a.items.prefixItems[1].not",
        ),
        ({"$defs": {"a": {"then": {}}}}, ".$defs.a.then"),
        ({"patternProperties": {"a" * (MAX_PATTERN_CHARS + 1): {}}}, ".patternProperties"),
        ({"additionalProperties": {"not": {}}}, ".additionalProperties.not"),
        ({"properties": {"a": {"$ref": "#/properties"}}}, ".properties.a.$ref"),
        ({"examples": [{}], "$ref": "#/examples/0"}, ".$ref"),
        ({"properties": {"a": {"$schema": "x"}}}, ".properties.a.$schema"),
    ],
)
def test_the_place_is_named_at_every_depth(schema: Any, at: str) -> None:
    assert place(schema) == at


@pytest.mark.parametrize("value", [[], 5, None, True, "", "[]", "{", "5", '{"type"', "x" * (3 * MAX_SCHEMA_BYTES)])
def test_schema_is_refused_when_it_is_not_an_object(value: Any) -> None:
    assert place(value) == ""


def test_size_depth_and_count_are_bounded() -> None:
    assert checked_schema(nested(MAX_SCHEMA_DEPTH))
    assert place(nested(MAX_SCHEMA_DEPTH + 1)).startswith(".properties.a.properties.a")
    assert place({"enum": ["x" * MAX_SCHEMA_BYTES]}) == ""
    assert checked_schema({"anyOf": [True] * (MAX_SUBSCHEMAS - 1)})
    assert place({"anyOf": [True] * MAX_SUBSCHEMAS}) == f".anyOf[{MAX_SUBSCHEMAS - 1}]"


def test_a_number_that_is_too_long_is_refused() -> None:
    assert "64 bits" in str(refusal({"minimum": 10**400}))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": ["string", "null"]},
        {"type": "object", "properties": {"not": {"type": "string"}, "if": True}, "required": ["not"]},
        {"enum": [None, "a", 1.5, {"not": 1}]},
        {"const": {"$ref": "#/nowhere", "uniqueItems": True}},
        {"default": {"not": 1}, "examples": [{"$ref": 5}], "title": "t", "x-order": [{"not": 2}]},
        {"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/properties/a"}}},
        {"$ref": "#/$defs/a~1b~0c%25", "$defs": {"a/b~c%": {}}},
        {"$ref": "#/anyOf/1/items", "anyOf": [{}, {"items": {}}]},
        {"$ref": "#/properties/0", "properties": {"0": {}}},
        {"minProperties": 3, "required": ["a", "b"]},
        *({"type": "string", "format": name} for name in FORMATS),
        *({"multipleOf": value} for value in (1, 0.01, 2.5, 1000, 0.000001, 7.0)),
    ],
)
def test_enforceable_schema_passes_unchanged(schema: Any) -> None:
    assert checked_schema(schema) == schema
    assert checked_schema(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    ("schema", "at"),
    [
        ({"$ref": "#"}, ".$ref"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, ".properties.a.$ref"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ".$defs.a.$ref"),
        ({"$defs": {f"d{i}": {"$ref": f"#/$defs/d{(i + 1) % 2000}"} for i in range(2000)}}, ".$defs.d0.$ref"),
    ],
    ids=["root", "itself", "each other", "a long way"],
)
def test_references_that_lead_nowhere_are_refused(schema: Any, at: str) -> None:
    assert place(schema) == at


def test_the_order_of_properties_is_kept() -> None:
    names = ["zeta", "alpha", "mid"]
    assert list(checked_schema({"properties": {name: {} for name in names}})["properties"]) == names


def test_the_dialect_and_name_of_the_root_change_nothing() -> None:
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.org/a", "type": "null"}
    assert checked_schema(schema) == {"type": "null"}


@pytest.mark.parametrize("name", ["oneOf", "anyOf"])
def test_alternatives_require_the_discriminator_property(name: str) -> None:
    cat = {"$ref": "#/$defs/cat"}
    dog = {"properties": {"name": {}}, "required": ["name"]}
    pet: dict[str, Any] = {"discriminator": {"propertyName": "kind"}, name: [cat, dog, True, {"required": ["kind"]}]}
    expected = {**pet, name: [{**cat, "required": ["kind"]}, {**dog, "required": ["name", "kind"]}, *pet[name][2:]]}
    schema = {"$defs": {"cat": {}}, "items": pet, "const": pet}
    assert checked_schema(schema) == {**schema, "items": expected}


@pytest.mark.parametrize("discriminator", [None, "kind", {}, {"propertyName": 5}, []])
def test_a_discriminator_that_names_no_property_changes_nothing(discriminator: Any) -> None:
    schema = {"discriminator": discriminator, "oneOf": [{}]}
    assert checked_schema(schema) == schema


def test_the_schemas_below_one_come_with_the_steps_to_them() -> None:
    schema = {"properties": {"a": {"type": "null"}}, "anyOf": [True, {}], "items": {"const": 1}, "const": {"items": {}}}
    assert list(subschemas(schema)) == [
        (".properties.a", {"type": "null"}),
        (".anyOf[0]", True),
        (".anyOf[1]", {}),
        (".items", {"const": 1}),
    ]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*KEYWORDS, *ANNOTATIONS, *UNENFORCED]) | st.text(max_size=8), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(anything)
def test_any_json_is_either_passed_or_refused_with_a_place(value: Any) -> None:
    try:
        found: Any = checked_schema(value)
    except PydanticCustomError as error:
        found = error.context
    assert isinstance(found, dict)

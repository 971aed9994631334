"""Schemas of function arguments: the strictest enforceable one, and looser ones in case it cannot be compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.protocol.constrained import chat
from tests.protocol.tool_bodies import NAMED, allowed, held, properties, tool
from tokka.core import Constraint
from tokka.protocol.tools import loosened_texts

ANY = {"type": "object"}
PATH = {"type": "string", "format": "path"}
OVERLAPPING = {"oneOf": [{"type": "number"}, {"type": "integer"}]}


def levels(constraint: Constraint) -> list[Any]:
    """Return the schemas in the order of the attempts, without duplicates."""
    assert constraint.calls is not None
    return [json.loads(text) for text in dict.fromkeys((constraint.text, *loosened_texts(constraint.calls)))]


def only(**schemas: Any) -> dict[str, Any]:
    return {**properties(**schemas), "additionalProperties": False}


def test_one_keyword_that_cannot_be_enforced_leaves_the_others() -> None:
    schema = {**properties(x=PATH), "propertyNames": {"maxLength": 3}}
    constraint = held(NAMED, tool("f", schema))
    assert levels(constraint) == [only(x={"type": "string"}), ANY]
    assert constraint.param == "tools[0].function.parameters"


def test_what_may_not_compile_has_schemas_for_that() -> None:
    assert levels(held(NAMED, tool("f", properties(x=OVERLAPPING)))) == [
        only(x=OVERLAPPING),
        only(x={"anyOf": OVERLAPPING["oneOf"]}),
        ANY,
    ]


def test_a_strict_function_is_held_to_its_schema_or_refused() -> None:
    assert levels(held(NAMED, tool("f", properties(x=OVERLAPPING), strict=True))) == [only(x=OVERLAPPING)]
    assert len(levels(held(NAMED, tool("f"), tool("g", ANY)))) == 1


@pytest.mark.parametrize("parameters", [None, {}, ANY, {"type": "object", "properties": {}}], ids=str)
@pytest.mark.parametrize("strict", [True, False])
def test_a_function_without_properties_takes_no_arguments(parameters: Any, strict: bool) -> None:
    (first, *_) = levels(held(NAMED, tool("f", parameters, strict=strict)))
    assert first == {**(parameters or {"type": "object", "properties": {}}), "additionalProperties": False}


def test_properties_that_are_null_are_none() -> None:
    (first, *_) = levels(held(NAMED, tool("f", {"type": "object", "properties": None})))
    assert first == {"type": "object", "additionalProperties": False}


def test_a_widened_schema_is_closed_unless_it_lost_names() -> None:
    lost = {**properties(x=PATH), "if": {"required": ["x"]}, "then": {"properties": {"y": {}}}}
    (first, *_) = levels(held(NAMED, tool("f", lost)))
    assert first == {**properties(x={"type": "string"}), "additionalProperties": True}


def test_each_function_is_loosened_as_far_as_it_may_be() -> None:
    strict = properties(y=OVERLAPPING)
    made = levels(held("required", tool("f", properties(x=OVERLAPPING)), tool("g", strict, strict=True), tool("h")))
    assert [level["$defs"]["f"] for level in made] == [
        only(x=OVERLAPPING),
        only(x={"anyOf": OVERLAPPING["oneOf"]}),
        ANY,
    ]
    assert all(level["$defs"]["g"] == only(y=OVERLAPPING) for level in made)
    assert all(level["$defs"]["h"]["additionalProperties"] is False for level in made)


def test_of_the_functions_it_is_told_of_a_model_may_call_those_that_are_allowed() -> None:
    tools = [tool("f"), tool("g", strict=True), tool("h")]
    made = levels(held(allowed("required", "h", "f"), *tools))
    assert [set(level["$defs"]) for level in made] == [{"f", "h"}]
    for mode in ("auto", "required"):
        told = chat(tools=tools, tool_choice=allowed(mode, "h", "f")).prompt().tools
        assert told is not None
        assert (told.choice, told.names, len(told.functions)) == (mode, {"f", "h"}, 3)
        # `g`, the only strict function, may not be called.
        assert told.schemas is None
    told = chat(tools=tools, tool_choice=allowed("auto", "g")).prompt().tools
    assert told is not None
    assert set(told.schemas or ()) == {"g"}


def test_references_are_moved_with_their_schema_and_data_is_left_alone() -> None:
    data = {"$ref": "#/x", "items": {"$ref": "#"}}
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/d"}, "$ref": {"const": data}, "e": {"enum": [data]}},
        "$defs": {"d": {"default": data, "anyOf": [{"$ref": "#"}]}},
    }
    (first, *_) = levels(held("required", tool("f", schema)))
    assert first["$defs"]["f"] == {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/f/$defs/d"}, "$ref": {"const": data}, "e": {"enum": [data]}},
        "$defs": {"d": {"default": data, "anyOf": [{"$ref": "#/$defs/f"}]}},
        "additionalProperties": False,
    }

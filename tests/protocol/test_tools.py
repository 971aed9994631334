"""Constraints on tool calls: the strictest enforceable schemas, and looser ones in case they cannot be compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.protocol.bodies import CHAT, chat
from tests.protocol.tool_bodies import NAMED, allowed, held, properties, tool
from tokka.core import Constraint
from tokka.errors import InvalidRequest
from tokka.protocol import constraint, schema_loosening, tools
from tokka.protocol.chat import ChatRequest
from tokka.protocol.constraint import loosened_texts
from tokka.protocol.json_schema import checked_schema
from tokka.protocol.validation import validated

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


def test_uncertain_schema_has_fallback_levels() -> None:
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


def test_allowed_tools_restricts_callable_functions() -> None:
    tools = [tool("f"), tool("g", strict=True), tool("h")]
    made = levels(held(allowed("required", "h", "f"), *tools))
    assert [set(level["$defs"]) for level in made] == [{"f", "h"}]
    for mode in ("auto", "required"):
        told = chat(tools=tools, tool_choice=allowed(mode, "h", "f")).prompt().tools
        assert told is not None
        assert (told.choice, told.names, len(told.functions)) == (mode, frozenset({"f", "h"}), 3)
    # `g`, the only strict function, may not be called.
    assert chat(tools=tools, tool_choice=allowed("auto", "h", "f")).constraint is None
    assert set(json.loads(held(allowed("auto", "g"), *tools).text)["functions"]) == {"g"}


def test_optional_calls_hold_strict_functions_to_their_schemas() -> None:
    tools = [tool("f", properties(x=OVERLAPPING), strict=True), tool("g", properties(x=OVERLAPPING))]
    functions = {"f": only(x=OVERLAPPING), "g": ANY}
    for choice, parallel in (("auto", True), (None, False)):
        constraint = held(choice, *tools, parallel_tool_calls=parallel)
        assert json.loads(constraint.text) == {"functions": functions, "answer": None, "parallel": parallel}
        assert (constraint.kind, constraint.param, constraint.is_optional) == ("calls", "tools", True)
        assert constraint.calls is None
    assert chat(tools=tools[1:]).constraint is None


def test_optional_calls_hold_other_text_to_the_response_format() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": properties(y=PATH)}}
    constraint = held("auto", tool("f", properties(x=PATH)), response_format=form)
    answer = only(y={"type": "string"})
    assert json.loads(constraint.text) == {"functions": {"f": ANY}, "answer": answer, "parallel": True}
    assert (constraint.kind, constraint.param, constraint.is_optional) == ("calls", "response_format", False)
    required = held("required", tool("f"), response_format=form)
    assert (required.kind, required.param, required.is_optional) == ("json", "tools", False)


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
def test_strict_schema_is_checked_once(choice: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []

    def check(schema: Any) -> dict[str, Any]:
        checks.append(schema)
        return checked_schema(schema)

    for module in (constraint, schema_loosening, tools):
        monkeypatch.setattr(module, "checked_schema", check)
    made = held(choice, tool("f", only(x=ANY), strict=True))
    assert made.calls is None or len(levels(made)) == 1
    assert len(checks) == 1


@pytest.mark.parametrize(
    ("fields", "beside"),
    [
        ({"tool_choice": "auto"}, "strict functions"),
        ({"tool_choice": "required"}, "tools"),
        ({"tool_choice": NAMED}, "tools[0].function.parameters"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusal_names_the_contradicting_field(fields: dict[str, Any], beside: str) -> None:
    body = {**CHAT, "tools": [tool("f", strict=True)], **fields, "min_tokens": 3}
    with pytest.raises(InvalidRequest) as caught:
        validated(ChatRequest, json.dumps(body).encode())
    assert caught.value.message.endswith(f"min_tokens cannot be combined with {beside}: leave one out.")


def test_references_move_with_their_schema_and_data_stays() -> None:
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

"""Constraints: a request's fields become one constraint on the output, and contradicting fields are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.protocol.bodies import CHAT, COMPLETION, chat, completion
from tokka.core import Constraint
from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import CompletionRequest
from tokka.protocol.constraint import MAX_CHOICE_CHARS, MAX_CONSTRAINT_CHOICES, MAX_GRAMMAR_CHARS, MAX_REGEX_CHARS

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}


def compact(schema: dict[str, Any], **more: Any) -> str:
    return json.dumps({**schema, **more}, separators=(",", ":"))


def refused(model: type[BaseModel], fields: dict[str, Any]) -> str:
    base = CHAT if model is ChatRequest else COMPLETION
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps({**base, **fields}))
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"json": SCHEMA}, Constraint("json", compact(SCHEMA, additionalProperties=False), "structured_outputs.json")),
        ({"json": '{"type": "null"}'}, Constraint("json", '{"type":"null"}', "structured_outputs.json")),
        ({"regex": "a|b"}, Constraint("regex", "a|b", "structured_outputs.regex")),
        ({"choice": ["ä", "b"]}, Constraint("choice", '["ä","b"]', "structured_outputs.choice")),
        ({"grammar": "start: A"}, Constraint("grammar", "start: A", "structured_outputs.grammar")),
        ({"json_object": True}, Constraint("json", '{"type":"object"}', "structured_outputs.json_object")),
    ],
)
def test_each_kind_becomes_one_constraint_on_both_endpoints(fields: dict[str, Any], expected: Constraint) -> None:
    for request in (chat(structured_outputs=fields), completion(structured_outputs=fields)):
        assert request.to_core().sampling.constraint == expected


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_enforced_strict_or_not(strict: bool | None) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}, "strict": strict}}
    expected = Constraint("json", '{"type":"null"}', "response_format.json_schema.schema")
    assert chat(response_format=form).to_core().sampling.constraint == expected


ANNOTATED: list[tuple[Any, Any]] = [
    ({"type": "integer", "format": "int32"}, {"type": "integer"}),
    ({"type": "string", "format": "password", "units": "m", "markdownDescription": "b"}, {"type": "string"}),
    ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
    ({"enum": ["a"], "nullable": True, "enumNames": ["A"]}, {"enum": ["a", None]}),
    ({"const": "a", "nullable": True}, {"enum": ["a", None]}),
    ({"type": "string", "nullable": False, "contentEncoding": "base64"}, {"type": "string"}),
    ({"type": "array", "uniqueItems": False, "items": {"format": "float"}}, {"type": "array", "items": {}}),
    ({"anyOf": [{"id": "x", "type": "null"}], "maxlength": 3}, {"anyOf": [{"type": "null"}]}),
    # `const` holds data, not a schema. `date` is a known format, so it is enforced.
    ({"const": {"format": "int32"}, "format": "date"}, {"const": {"format": "int32"}, "format": "date"}),
]


@pytest.mark.parametrize(("annotated", "bare"), ANNOTATED, ids=str)
def test_annotations_are_taken_unless_strict(annotated: Any, bare: Any) -> None:
    schema = {"type": "object", "properties": {"x": annotated}}
    expected = compact({"type": "object", "properties": {"x": bare}}, additionalProperties=False)

    def form(**fields: Any) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **fields}}

    for fields in (form(), form(strict=False), form(strict=None)):
        held = chat(response_format=fields).to_core().sampling.constraint
        assert held is not None
        assert held.text == expected
    for json_schema in (schema, json.dumps(schema)):
        held = completion(structured_outputs={"json": json_schema}).to_core().sampling.constraint
        assert held is not None
        assert held.text == expected
    if annotated != bare:
        refusal = refused(ChatRequest, {"response_format": form(strict=True)})
        assert "cannot be enforced" in refusal or "Input should be one of" in refusal


@pytest.mark.parametrize(
    "schema",
    [
        *({name: {}} for name in ("not", "if", "contains", "propertyNames", "dependentSchemas", "x-guidance")),
        *({"uniqueItems": True}, {"format": 5}, {"enum": 5, "nullable": True}, {"properties": [], "nullable": True}),
        *({"type": 5, "nullable": True}, {"anyOf": 5}, {"$anchor": "a"}, {"items": [{"format": "x"}]}),
    ],
    ids=str,
)
def test_rules_that_cannot_be_enforced_are_refused(schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {"x": schema}}}}
    assert refused(ChatRequest, {"response_format": form})


def test_a_schema_that_nests_as_deep_as_json_may_is_refused() -> None:
    schema: Any = {}
    for _ in range(90):
        schema = {"items": schema}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert "levels deep" in refused(ChatRequest, {"response_format": form})


def test_without_a_schema_it_is_any_object() -> None:
    expected = Constraint("json", '{"type":"object"}', "response_format.json_schema.schema")
    for form in ({"name": "n"}, {"name": "n", "schema": None, "strict": True}):
        fields = {"response_format": {"type": "json_schema", "json_schema": form}}
        assert chat(**fields).to_core().sampling.constraint == expected


def test_an_object_can_be_asked_for() -> None:
    expected = Constraint("json", '{"type":"object"}', "response_format.type")
    assert chat(response_format={"type": "json_object"}).to_core().sampling.constraint == expected


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None}])
def test_text_is_not_constrained(fields: dict[str, Any]) -> None:
    assert chat(**fields).to_core().sampling.constraint is None
    assert chat(**fields, structured_outputs={"regex": "a"}).to_core().sampling.constraint is not None


@pytest.mark.parametrize(
    "value",
    [
        *({}, [], "a", 5, True),
        *({"regex": None}, {"regex": ""}, {"regex": 5}, {"regex": "a" * (MAX_REGEX_CHARS + 1)}),
        *({"choice": []}, {"choice": "a"}, {"choice": [""]}, {"choice": [None]}),
        *({"choice": ["a"] * (MAX_CONSTRAINT_CHOICES + 1)}, {"choice": ["a" * (MAX_CHOICE_CHARS + 1)]}),
        *({"grammar": ""}, {"grammar": "a" * (MAX_GRAMMAR_CHARS + 1)}, {"grammar": "start: %json {}"}),
        {"grammar": "start: %llguidance {}"},
        *({"json_object": False}, {"json_object": 1}, {"json": None}, {"json": []}, {"json": True}),
        *({"regex": "a", "choice": ["a"]}, {"json": {}, "json_object": True}, {"json_schema": {}}, {"json_": {}}),
        *({"structural_tag": "{}"}, {"whitespace_pattern": "a", "json": {}}, {"_backend": "outlines", "json": {}}),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest])
def test_a_constraint_of_the_wrong_form_is_refused(model: type[BaseModel], value: Any) -> None:
    assert refused(model, {"structured_outputs": value})


@pytest.mark.parametrize(
    ("name", "value"), [("ignore_eos", True), ("min_tokens", 1), ("bad_words", ["a"]), ("allowed_token_ids", [1])]
)
@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest])
def test_field_is_refused_when_it_contradicts_a_constraint(model: type[BaseModel], name: str, value: Any) -> None:
    assert "cannot be combined" in refused(model, {"structured_outputs": {"regex": "a"}, name: value})


@pytest.mark.parametrize(
    "fields",
    [{"ignore_eos": False}, {"min_tokens": 0}, {"bad_words": []}, {"n": 3}, {"stop": "a"}, {"logit_bias": {"1": -100}}],
)
def test_compatible_fields_are_accepted_beside_a_constraint(fields: dict[str, Any]) -> None:
    assert completion(structured_outputs={"regex": "a"}, **fields).to_core().sampling.constraint


@pytest.mark.parametrize("field", [{"ignore_eos": True}, {"min_tokens": 1}])
def test_field_is_refused_when_it_contradicts_a_response_format(field: dict[str, Any]) -> None:
    assert "cannot be combined" in refused(ChatRequest, {"response_format": {"type": "json_object"}, **field})


def test_two_forms_at_once_are_refused() -> None:
    fields = {"response_format": {"type": "json_object"}, "structured_outputs": {"json_object": True}}
    assert "cannot be combined" in refused(ChatRequest, fields)

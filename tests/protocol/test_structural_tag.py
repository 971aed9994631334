"""`structural_tag` in `response_format` and in `structured_outputs`, in both of vLLM's forms."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.protocol.bodies import CHAT, chat, completion
from tokka.core import Constraint
from tokka.errors import InvalidRequest
from tokka.protocol.chat import ChatRequest
from tokka.protocol.validation import validated

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LEGACY: dict[str, Any] = {
    "type": "structural_tag",
    "structures": [{"begin": "<f=a>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f="],
}
NEWER: dict[str, Any] = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<f="],
        "tags": [{"begin": "<f=a>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</f>"}],
        "at_least_one": False,
        "stop_after_first": False,
    },
}
TAG = {
    "trigger": "<f=",
    "begin": "<f=a>",
    "schema": {**SCHEMA, "additionalProperties": False},
    "end": "</f>",
}


def tags_of(constraint: Constraint | None) -> list[dict[str, Any]]:
    assert constraint is not None
    assert constraint.kind == "tags"
    tags: list[dict[str, Any]] = json.loads(constraint.text)
    return tags


@pytest.mark.parametrize("form", [LEGACY, NEWER])
def test_structural_tag_is_the_same_in_all_places_and_forms(form: dict[str, Any]) -> None:
    for request in (chat, completion):
        for fields in (
            {"response_format": form},
            {"structured_outputs": {"structural_tag": json.dumps(form)}},
            {"structured_outputs": {"structural_tag": form}},
        ):
            assert tags_of(request(**fields).to_core().sampling.constraint) == [TAG]


def with_tag(**fields: Any) -> dict[str, Any]:
    return {**LEGACY, "structures": [{**LEGACY["structures"][0], **fields}]}


@pytest.mark.parametrize(
    ("form", "place"),
    [
        (with_tag(begin="<g>"), "structures[0].begin"),
        (with_tag(begin=""), "structures[0].begin"),
        (with_tag(schema={"type": "nothing"}), "structures[0].schema.type"),
        ({**LEGACY, "triggers": []}, "triggers"),
        ({"type": "structural_tag"}, ""),
        ({**LEGACY, **NEWER}, ""),
        ({"type": "structural_tag", "triggers": ["a"]}, ""),
        ({"type": "structural_tag", "format": {"type": "sequence", "elements": []}}, "format.type"),
        ({**NEWER, "format": {**NEWER["format"], "at_least_one": True}}, "format.at_least_one"),
        ({**LEGACY, "structures": LEGACY["structures"] * 65}, "structures"),
    ],
)
def test_wrong_structural_tag_is_refused_at_its_place(form: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validated(ChatRequest, json.dumps({**CHAT, "response_format": form}).encode())
    assert refused.value.param is not None
    assert refused.value.param.startswith(f"response_format.{place}".rstrip("."))


def test_structural_tag_that_is_no_json_is_refused() -> None:
    body = {**CHAT, "structured_outputs": {"structural_tag": "<f>"}}
    with pytest.raises(InvalidRequest, match="must be JSON"):
        validated(ChatRequest, json.dumps(body).encode())


TOOLS = [{"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}]


@pytest.mark.parametrize("form", [{"json": SCHEMA}, {"json_object": True}])
def test_json_beside_tools_is_for_an_answer_without_calls(form: dict[str, Any]) -> None:
    own = chat(tools=TOOLS, structured_outputs=form).constraint
    same = {"json": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}
    as_format = chat(tools=TOOLS, response_format=same.get(next(iter(form)), {"type": "json_object"})).constraint
    assert own is not None
    assert as_format is not None
    assert json.loads(own.text)["answer"] is not None
    assert (own.text, own.param, as_format.param) == (as_format.text, "structured_outputs", "response_format")


@pytest.mark.parametrize("form", [{"regex": "a"}, {"choice": ["a"]}, {"grammar": 'start: "a"'}])
def test_text_beside_tools_is_refused_with_the_reason(form: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="only JSON can be told from a tool call") as refused:
        validated(ChatRequest, json.dumps({**CHAT, "tools": TOOLS, "structured_outputs": form}).encode())
    assert refused.value.param == f"structured_outputs.{next(iter(form))}"


def test_structural_tag_beside_tools_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="only JSON can be told from a tool call"):
        validated(ChatRequest, json.dumps({**CHAT, "tools": TOOLS, "response_format": LEGACY}).encode())


@pytest.mark.parametrize("pattern", ["", "[ ]?", "[\n\t ]*", r"[\n\t ]*", r"\s*", " ?", "[ ]{0,2}", r" ?\n?"])
def test_whitespace_pattern_that_allows_none_changes_nothing(pattern: str) -> None:
    fields = {"json": SCHEMA, "whitespace_pattern": pattern, "disable_any_whitespace": True}
    assert chat(structured_outputs=fields).constraint == chat(structured_outputs={"json": SCHEMA}).constraint


@pytest.mark.parametrize("pattern", [" ", r"\s+", "[ ]", "a", "[ ]{1,2}", "(a?){9999}", "[ ]?" * 100])
def test_whitespace_pattern_that_asks_for_some_is_refused(pattern: str) -> None:
    body = {**CHAT, "structured_outputs": {"json": SCHEMA, "whitespace_pattern": pattern}}
    with pytest.raises(InvalidRequest, match="without whitespace"):
        validated(ChatRequest, json.dumps(body).encode())


def test_additional_properties_can_be_disabled() -> None:
    schema = {
        "type": "object",
        "patternProperties": {"^a$": {"type": "object", "properties": {"b": {}}}},
        "$defs": {"open": {"type": "object", "properties": {"c": {}}, "additionalProperties": True}},
    }
    fields = {"json": schema, "disable_additional_properties": True}
    constraint = chat(structured_outputs=fields).constraint
    assert constraint is not None
    held = json.loads(constraint.text)
    assert held["additionalProperties"] is False
    assert held["patternProperties"]["^a$"]["additionalProperties"] is False
    assert held["$defs"]["open"]["additionalProperties"] is True

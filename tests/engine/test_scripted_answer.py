"""The scripted engine's tool calls and reasoning, and the values that it makes for a schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from tests.engine.contract import Result, ask, collect
from tokka.core import ChatPrompt, Constraint, ReasoningDelta, Sampling, TextPrompt, ToolCallDelta, ToolChoice, Tools
from tokka.engine.fake import ANSWER, FakeEngine, FakeOptions
from tokka.engine.reading.forms import READABLE
from tokka.engine.schema_example import NoExampleError, example
from tokka.engine.scripted_answer import REASONING

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 6},
        "unit": {"enum": ["celsius", "kelvin"]},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "minItems": 2},
        "place": {"type": "object", "properties": {"lat": {"type": "number", "minimum": 60.5}}, "required": ["lat"]},
        "left_out": {"type": "string"},
    },
    "required": ["city", "unit", "days", "place"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "integer", "exclusiveMinimum": 7, "maximum": 31}},
}
SCHEMAS: list[dict[str, Any]] = [
    SCHEMA,
    {"const": {"a": 1}},
    {"enum": [None]},
    {"type": ["null", "string"]},
    {"type": "boolean"},
    {"type": "integer", "minimum": 5, "multipleOf": 3},
    {"type": "integer", "maximum": -5},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    {"type": "string", "maxLength": 2},
    {"type": "string", "format": "date-time"},
    {"type": "string", "pattern": "^[a-z]{3}$"},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "minItems": 3},
    {"type": "object", "minProperties": 2, "properties": {"a": {"type": "integer"}}},
    {"allOf": [{"required": ["a"], "properties": {"a": {"type": "integer"}}}, {"required": ["b"]}]},
    {"oneOf": [{"type": "string"}, {"type": "null"}]},
    {"required": ["node"], "properties": {"node": {"$ref": "#/$defs/node"}}}
    | {
        "$defs": {
            "node": {
                "required": ["next"],
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            }
        }
    },
]
CALLER = FakeOptions(tool_calls=True)
USER = {"role": "user", "content": "Hei"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "a"}}]}
RESULT = {"role": "tool", "content": "Sunny", "tool_call_id": "c"}


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def chat(*messages: dict[str, Any], choice: ToolChoice = "auto", name: str | None = None, **fields: Any) -> ChatPrompt:
    functions = (tool("get_weather", SCHEMA), tool("now", {"type": "object", "properties": {}}))
    return ChatPrompt(messages or (USER,), Tools(functions, choice, name, **fields))


async def answer(prompt: Any, options: FakeOptions = CALLER, constraint: Constraint | None = None) -> Result:
    return await collect(FakeEngine(options), ask(prompt, sampling=Sampling(constraint=constraint)))


def calls(result: Result) -> list[tuple[str | None, Any]]:
    pieces = [event for event in result.events if isinstance(event, ToolCallDelta)]
    count = len({piece.call_index for piece in pieces})
    joined = ["".join(piece.arguments for piece in pieces if piece.call_index == at) for at in range(count)]
    names = [piece.name for piece in pieces if piece.name is not None]
    return list(zip(names, map(json.loads, joined), strict=True))


def reasoning(result: Result) -> str:
    return "".join(event.text for event in result.events if isinstance(event, ReasoningDelta))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_example_matches_its_schema(schema: dict[str, Any]) -> None:
    jsonschema_rs.validate(schema, example(schema))


def test_example_of_an_endless_schema_is_an_error() -> None:
    with pytest.raises(NoExampleError):
        example({"type": "array", "minItems": 1, "items": {"$ref": "#"}})


@pytest.mark.parametrize("parser", READABLE)
async def test_call_matches_the_schema_of_the_first_tool(parser: str) -> None:
    result = await answer(chat(), FakeOptions(tool_calls=True, calls=parser))
    ((name, arguments),) = calls(result)
    assert name == "get_weather"
    jsonschema_rs.validate(SCHEMA, arguments)
    assert (result.text(), result.done().finish_reason) == ("", "tool_calls")


async def test_call_is_of_the_first_allowed_tool() -> None:
    assert calls(await answer(chat(allowed=frozenset({"now"})))) == [("now", {})]


@pytest.mark.parametrize(
    ("messages", "is_called"),
    [
        ((USER,), True),
        ((USER, CALL, RESULT), False),
        ((USER, CALL, RESULT, {"role": "system", "content": "Be brief."}), False),
        ((USER, CALL, RESULT, USER), False),
        ((USER, CALL, RESULT, {"role": "assistant", "content": "Sunny."}, USER), True),
    ],
)
async def test_call_is_made_once_per_turn_of_the_user(messages: tuple[dict[str, Any], ...], is_called: bool) -> None:
    result = await answer(chat(*messages))
    assert bool(calls(result)) is is_called
    assert result.text() == ("" if is_called else ANSWER)


async def test_required_and_named_calls_are_made_after_a_result() -> None:
    ((name, _),) = calls(await answer(chat(USER, CALL, RESULT, choice="required")))
    assert name == "get_weather"
    assert calls(await answer(chat(USER, CALL, RESULT, choice="named", name="now"))) == [("now", {})]


async def test_no_tool_is_called_without_tools_or_option() -> None:
    assert (await answer(ChatPrompt((USER,)))).text() == ANSWER
    assert (await answer(chat(), FakeOptions())).text() == ANSWER


async def test_schema_of_the_text_is_matched() -> None:
    constraint = Constraint("json", json.dumps(SCHEMA), "response_format")
    text = (await answer(ChatPrompt((USER,)), constraint=constraint)).text()
    jsonschema_rs.validate(SCHEMA, json.loads(text))


async def test_schema_of_the_text_beside_tools_is_matched() -> None:
    constraint = Constraint("calls", json.dumps({"functions": {}, "answer": SCHEMA}), "response_format")
    assert calls(await answer(chat(), constraint=constraint))
    text = (await answer(chat(USER, CALL, RESULT), constraint=constraint)).text()
    jsonschema_rs.validate(SCHEMA, json.loads(text))


@pytest.mark.parametrize("prompt", [ChatPrompt((USER,)), chat(), chat(choice="required")])
async def test_reasoning_comes_first(prompt: ChatPrompt) -> None:
    result = await answer(prompt, FakeOptions(tool_calls=True, thoughts=True))
    assert reasoning(result) == REASONING
    assert result.usage.reasoning_tokens == len(REASONING)
    assert (result.text() == ANSWER) is not bool(calls(result))


async def test_reasoning_is_left_out_of_completions() -> None:
    assert (await answer(TextPrompt("Hei"), FakeOptions(thoughts=True))).text() == ANSWER


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "minProperties": 10**9},
        {"type": "array", "minItems": 10**9},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": "x"},
        {"type": "object", "required": 5},
    ],
    ids=str,
)
def test_large_or_malformed_schema_has_no_example(schema: dict[str, Any]) -> None:
    with pytest.raises(NoExampleError):
        example(schema)

"""Bad tools, some of which have crashed other servers: each error names the field, and the server keeps serving."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.contract.bodies import ASSISTANT, CALL, CHAT, GOOD, USER, assert_error, assert_serves, case_id, post

CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "c"}


def tool(name: Any = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


F = tool()
NO_OBJECTS: list[Any] = [[], "{}", 5, True]
# (fields of the body, the error's param, its code if it is not `invalid_value`)
CASES: list[tuple[Any, ...]] = [
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tools": {}}, "tools"),
    ({"tools": "f"}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{**F, "more": 1}]}, "tools[0].more"),
    ({"tools": [F, {"type": "function", "function": {}}]}, "tools[1].function.name"),
    ({"tools": [F, F]}, "tools[1].function.name"),
    ({"tools": [*(tool(f"f{i}") for i in range(3)), tool("f1")]}, "tools[3].function.name"),
    ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools"),
    *(({"tools": [tool(name)]}, "tools[0].function.name") for name in ("", "a" * 65, "a b", "ä", "a.b", None, 5)),
    ({"tools": [tool(description=5)]}, "tools[0].function.description"),
    ({"tools": [tool(description="a" * 16385)]}, "tools[0].function.description"),
    ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
    ({"tools": [tool(unknown=1)]}, "tools[0].function.unknown"),
    *(({"tools": [tool(parameters=schema)]}, "tools[0].function.parameters") for schema in NO_OBJECTS),
    ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters.type"),
    ({"tools": [tool(parameters=nested(33))]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters=nested(80))]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters={"enum": ["a" * 140_000]})]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters={"maximum": 2**70})]}, "tools[0].function.parameters"),
    ({"tools": [tool(f"f{i}", description="a" * 16000) for i in range(17)]}, "tools"),
    (
        {"tools": [F, tool("g", strict=True, parameters={"properties": {"x": {"uniqueItems": True}}})]},
        "tools[1].function.parameters.properties.x.uniqueItems",
        "unsupported_parameter",
    ),
    (
        {"tools": [tool(strict=True, parameters={"properties": {"x": {"$ref": "#/$defs/no"}}})]},
        "tools[0].function.parameters.properties.x.$ref",
    ),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": named("f")}, "tool_choice"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tools": [F], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"tools": [F], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [F], "tool_choice": 5}, "tool_choice"),
    ({"tools": [F], "tool_choice": {}}, "tool_choice.type"),
    ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [F], "tool_choice": named("g")}, "tool_choice.function.name"),
    ({"tools": [F], "tool_choice": named("a b")}, "tool_choice.function.name"),
    ({"tools": [F], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
    ({"tools": [F], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
    ({"tools": [F], "tool_choice": allowed()}, "tool_choice.allowed_tools.tools"),
    ({"tools": [F], "tool_choice": allowed(*["f"] * 129)}, "tool_choice.allowed_tools.tools"),
    ({"tools": [F], "tool_choice": allowed("f", "g")}, "tool_choice.allowed_tools.tools[1].function.name"),
    ({"tools": [F], "tool_choice": allowed("f", mode="none")}, "tool_choice.allowed_tools.mode"),
    ({"tool_choice": allowed("f")}, "tool_choice"),
    ({"tools": [F], "response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ({"tools": [F], "structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
    ({"tools": [F], "tool_choice": "required", "min_tokens": 3}, "min_tokens"),
    ({"tools": [F], "tool_choice": named("f"), "ignore_eos": True}, "ignore_eos"),
    ({"tools": [tool(strict=True)], "bad_words": ["a"]}, "bad_words"),
    ({"messages": [USER, {"role": "tool", "content": "3"}]}, "messages[1].tool_call_id"),
    ({"messages": [USER, RESULT]}, "messages[1].tool_call_id"),
    ({"messages": [USER, CALLED, {**RESULT, "tool_call_id": "d"}]}, "messages[2].tool_call_id"),
    *(
        ({"messages": [USER, CALLED, {**RESULT, "name": name}]}, "messages[2].name")
        for name in ("", "a b", "a" * 65, 5)
    ),
    ({"messages": [USER, RESULT, CALLED]}, "messages[1].tool_call_id"),
    ({"messages": [USER, {**CALLED, "tool_calls": [{**CALL, "type": "custom"}]}]}, "messages[1].tool_calls[0].type"),
    (
        {"messages": [USER, {**CALLED, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}]},
        "messages[1].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]}-{str(case[0])[:40]}")
async def test_a_wrong_tool_is_named(client: httpx.AsyncClient, case: tuple[Any, ...]) -> None:
    fields, param, *code = case
    answer = await post(client, CHAT, json.dumps({**GOOD[CHAT], **fields}))
    assert_error(answer, 400, param, *code)
    await assert_serves(client)


async def test_a_list_that_nests_as_deep_as_json_may_is_refused(client: httpx.AsyncClient) -> None:
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    function = f'{{"name": "f", "parameters": {deep}}}'
    body = json.dumps(GOOD[CHAT])[:-1] + f', "tools": [{{"type": "function", "function": {function}}}]}}'
    answer = await post(client, CHAT, body)
    assert answer.status_code == 400
    await assert_serves(client)


GOOD_FIELDS: list[dict[str, Any]] = [
    {"tools": [tool(f"f{i}") for i in range(128)]},
    {"tools": [tool("a" * 64, parameters=nested(30))], "tool_choice": "auto", "parallel_tool_calls": False},
    # `uniqueItems` is not enforced, so it is accepted. A schema may refer to itself.
    {"tools": [tool(parameters={"properties": {"x": {"uniqueItems": True, "$ref": "#"}}})]},
    {"tools": [tool(parameters={"$defs": {"a": {"$ref": "#/$defs/a"}}, "properties": {"x": {"$ref": "#/$defs/a"}}})]},
    {"tools": [F], "tool_choice": "none", "response_format": {"type": "text"}},
    {"messages": [USER, CALLED, RESULT, {**ASSISTANT, "reasoning_content": "Hm.", "reasoning": "Hm."}, USER]},
    {"tools": [F], "messages": [USER, {**CALLED, "parsed": None}, RESULT]},
    {"tools": [F, tool("g")], "tool_choice": allowed("f", "f")},
    {"tools": [F], "tool_choice": allowed(*["f"] * 128)},
    # instructor sends a result with a name.
    {"tools": [F], "messages": [USER, CALLED, {**RESULT, "name": "f"}]},
]


@pytest.mark.parametrize("fields", GOOD_FIELDS, ids=case_id)
async def test_tools_within_the_bounds_are_served(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    answer = await post(client, CHAT, json.dumps({**GOOD[CHAT], **fields}))
    assert answer.status_code == 200, answer.text

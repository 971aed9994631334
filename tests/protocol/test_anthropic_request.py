"""The request of /v1/messages: what it becomes for the engine, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tokka.errors import InvalidRequest, ThreadsUnsupported, UnsupportedParameter
from tokka.protocol.anthropic.errors import error_body
from tokka.protocol.anthropic.request import CountTokensRequest, MessagesRequest
from tokka.protocol.chat import ChatRequest
from tokka.protocol.validation import validated

USER = {"role": "user", "content": "Hei"}
BODY: dict[str, Any] = {"model": "m", "max_tokens": 10, "messages": [USER]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "d", "input_schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
FORMAT = {"type": "json_schema", "schema": SCHEMA}


def request(**fields: Any) -> MessagesRequest:
    return validated(MessagesRequest, json.dumps({**BODY, **fields}).encode())


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        request(**fields)
    return caught.value


def test_fields_become_the_sampling() -> None:
    core = request(temperature=0.5, top_p=0.9, top_k=3, stop_sequences=["a", "b"]).to_core()
    sampling = core.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop) == (0.5, 0.9, 3, ("a", "b"))
    # Asked for if there is room for it: more is not an error.
    assert (sampling.max_tokens, sampling.default_max_tokens) == (None, 10)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None, True)),
        ({"type": "auto"}, ("auto", None, True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", None, False)),
        ({"type": "any"}, ("required", None, True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", None, False)),
        ({"type": "tool", "name": "get_weather"}, ("named", "get_weather", False)),
    ],
)
def test_tool_choice_becomes_the_one_of_the_engine(choice: Any, expected: tuple[str, str | None, bool]) -> None:
    tools = request(tools=[TOOL], tool_choice=choice).prompt().tools
    assert tools is not None
    assert (tools.choice, tools.name, tools.parallel) == expected
    function = {"name": "get_weather", "description": "d", "parameters": SCHEMA}
    assert tools.functions == ({"type": "function", "function": function},)


def test_tool_choice_none_leaves_tools_out_of_the_prompt() -> None:
    assert request(tools=[TOOL], tool_choice={"type": "none"}).prompt().tools is None
    assert request(tools=[]).prompt().tools is None


def test_server_tools_are_left_out_and_named() -> None:
    asked = request(tools=[SEARCH, TOOL, {"type": "custom", "name": "b", "input_schema": {"type": "object"}}])
    tools = asked.prompt().tools
    assert tools is not None
    assert tools.names == {"get_weather", "b"}
    assert asked.ignored.tools == ("web_search_20250305",)
    assert request(tools=[SEARCH]).prompt().tools is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [SEARCH], "tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"tools": [SEARCH, TOOL], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice.name"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "x"}}]}]},
            "messages[0].content[0].source.type",
        ),
        ({"tools": [{**TOOL, "strict": True, "input_schema": {"not": {}}}]}, "tools[0].input_schema.not"),
    ],
)
def test_unsupported_values_are_refused_by_place(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    if param != "messages[0].content[0].type":
        assert isinstance(error, UnsupportedParameter)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"temperature": 1.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"system": 5}, "system"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "name": "a" * 129}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a", "input_schema": None}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"stop": ["a"]}, "stop"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
    ],
)
def test_invalid_field_is_refused_by_place(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


def test_thread_is_refused_in_the_words_of_the_package() -> None:
    asked = request(thread={"type": "create"})
    with pytest.raises(ThreadsUnsupported) as caught:
        asked.parsed()
    detail = error_body(caught.value)["error"]
    # The package then sends the whole conversation.
    assert detail["details"] == {"error_code": "thread_unsupported_request"}


def test_longest_name_of_a_tool_is_taken() -> None:
    name = "a" * 128
    tools = request(tools=[{**TOOL, "name": name}], tool_choice={"type": "tool", "name": name}).prompt().tools
    assert tools is not None
    assert tools.name == name


@pytest.mark.parametrize("fields", [{"output_config": {"format": FORMAT}}, {"output_format": FORMAT}])
def test_format_becomes_a_constraint(fields: dict[str, Any]) -> None:
    constraint = request(**fields).to_core().sampling.constraint
    assert constraint is not None
    assert constraint.kind == "json"
    assert json.loads(constraint.text)["required"] == ["city"]
    beside_tools = request(tools=[TOOL], **fields).to_core().sampling.constraint
    assert beside_tools is not None
    assert beside_tools.kind == "calls"


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, "high"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "none"),
    ],
)
def test_thinking_and_effort_reach_the_template(fields: dict[str, Any], effort: str | None) -> None:
    assert request(**fields).prompt().reasoning_effort == effort


def test_last_message_of_the_model_is_continued() -> None:
    prompt = request(messages=[USER, {"role": "assistant", "content": "It is"}]).prompt()
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (True, False)
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "a", "input": {}}]}
    prompt = request(messages=[USER, call]).prompt()
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (False, True)


def test_fields_of_betas_are_accepted() -> None:
    asked = request(
        betas=["context-management-2025-06-27"],
        cache_control={"type": "ephemeral"},
        context_management={"edits": []},
        mcp_servers=[],
        metadata={"user_id": "u"},
        service_tier="auto",
        tools=[{**TOOL, "cache_control": {"type": "ephemeral", "ttl": "1h"}, "defer_loading": True, "new": 1}],
    )
    assert asked.ignored.names == ("context_management", "mcp_servers")
    assert asked.ignored.in_messages == 1


def test_prompt_is_that_of_the_same_chat() -> None:
    call = {"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Oulu"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "Snow"}
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    turns = [USER, {"role": "assistant", "content": [thinking, call]}, {"role": "user", "content": [result]}]
    function = {"name": "get_weather", "arguments": '{"city": "Oulu"}'}
    calling = {"role": "assistant", "tool_calls": [{"id": "t", "type": "function", "function": function}]}
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {**calling, "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "t", "content": "Snow"},
    ]
    tool = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}}
    chat = {"model": "m", "messages": messages, "tools": [tool], "max_completion_tokens": 10, "temperature": 0.5}
    mine = request(system="Be brief.", messages=turns, tools=[TOOL], temperature=0.5).to_core()
    theirs = validated(ChatRequest, json.dumps(chat).encode()).to_core()
    assert mine.prompts == theirs.prompts
    assert replace(mine.sampling, default_max_tokens=None) == replace(theirs.sampling, max_tokens=None)


def test_count_tokens_has_the_prompt_of_a_generation() -> None:
    fields = {"system": "Be brief.", "tools": [TOOL], "messages": [USER]}
    body = json.dumps({"model": "m", **fields}).encode()
    assert validated(CountTokensRequest, body).parsed().prompt == request(**fields).prompt()
    with pytest.raises(InvalidRequest):
        validated(CountTokensRequest, json.dumps(BODY).encode())


def test_thinking_budget_bounds_the_reasoning() -> None:
    sampling = request(thinking={"type": "enabled", "budget_tokens": 2048}).to_core().sampling
    assert (sampling.thinking_token_budget, sampling.is_budget_optional) == (2048, True)
    for thinking in ({"type": "enabled"}, {"type": "disabled", "budget_tokens": 2048}, {"type": "adaptive"}, None):
        assert request(thinking=thinking).to_core().sampling.thinking_token_budget is None

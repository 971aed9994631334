"""Requests of responses: items become messages, flat tools become the tools of chat, errors name the field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tokka.core import ChatPrompt, GenerateRequest, IgnoredFields, Tools
from tokka.errors import InvalidRequest
from tokka.protocol.chat import ChatRequest
from tokka.protocol.fingerprint import fingerprint_of
from tokka.protocol.responses.create_event import ResponseCreate
from tokka.protocol.responses.request import ResponsesRequest
from tokka.protocol.validation import validated

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
SEARCH = {"type": "web_search", "search_context_size": "low"}
CUSTOM = {"type": "custom", "name": "apply_patch", "format": {"type": "text"}}
NAMESPACE = {"type": "namespace", "name": "crm", "description": "", "tools": [{**FUNCTION, "name": "find"}, CUSTOM]}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": "b"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "Sunny"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


def parsed(**fields: Any) -> ResponsesRequest:
    return validated(ResponsesRequest, json.dumps({"model": "m", "input": "Hei", **fields}).encode())


def prompt_of(request: GenerateRequest) -> ChatPrompt:
    (prompt,) = request.prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


def messages(items: Any, **fields: Any) -> list[dict[str, Any]]:
    return list(prompt_of(parsed(input=items, **fields).to_core()).messages)


def tools(**fields: Any) -> Tools | None:
    return prompt_of(parsed(**fields).to_core()).tools


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        parsed(**fields)
    return refused.value


def test_text_is_a_message_of_the_user() -> None:
    assert messages("Hei") == [{"role": "user", "content": "Hei"}]


def test_instructions_join_the_leading_system_messages() -> None:
    items = [
        {"role": "developer", "content": "One."},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Two."}]},
        {"role": "user", "content": "Hei"},
        {"role": "developer", "content": "Three."},
    ]
    user = {"role": "user", "content": "Hei"}
    later = {"role": "developer", "content": "Three."}
    assert messages(items, instructions="Zero.") == [
        {"role": "system", "content": "Zero.\n\nOne.\n\nTwo."},
        user,
        later,
    ]
    assert messages(items[:1] + items[2:]) == [{"role": "developer", "content": "One."}, user, later]


def test_items_of_one_answer_become_one_message() -> None:
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
        },
        {**CALL, "id": "fc_1", "status": "completed"},
        {**CALL, "call_id": "c2", "arguments": "not json"},
        {**OUTPUT, "output": [{"type": "input_text", "text": "Sunny"}, {"type": "input_text", "text": "20 C"}]},
        {**OUTPUT, "call_id": "c2"},
        {"role": "assistant", "content": "Sunny."},
    ]
    _, answer, *outputs, last = messages(items)
    assert (answer["content"], answer["reasoning_content"]) == ("I look.", "Hm.")
    assert [call["function"]["arguments"] for call in answer["tool_calls"]] == [{"a": "b"}, "not json"]
    assert outputs == [
        {"role": "tool", "content": "Sunny\n20 C", "tool_call_id": "c1"},
        {"role": "tool", "content": "Sunny", "tool_call_id": "c2"},
    ]
    assert last == {"role": "assistant", "content": "Sunny."}


def test_conversation_gives_the_engine_the_same_work_as_in_chat() -> None:
    chat_tool = {"type": "function", "function": {name: FUNCTION[name] for name in ("name", "parameters")}}
    chat_call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": CALL["arguments"]}}
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hei"},
            {"role": "assistant", "content": "", "tool_calls": [chat_call]},
            {"role": "tool", "tool_call_id": "c1", "content": "Sunny"},
        ],
        "tools": [chat_tool],
        "tool_choice": "required",
        "max_completion_tokens": 9,
        "temperature": 0,
    }
    chat = validated(ChatRequest, json.dumps(body).encode()).to_core()
    items = [{"role": "user", "content": "Hei"}, CALL, OUTPUT]
    fields = {"instructions": "Be brief.", "tools": [FUNCTION], "tool_choice": "required", "max_output_tokens": 9}
    assert fingerprint_of(parsed(input=items, temperature=0, **fields).to_core()) == fingerprint_of(chat)


@pytest.mark.parametrize(
    "reasoning",
    [
        {"type": "reasoning", "summary": []},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "xyz"},
        {"type": "reasoning", "id": "rs_1", "summary": None, "content": None, "encrypted_content": None},
    ],
    ids=str,
)
def test_reasoning_without_content_is_left_out(reasoning: dict[str, Any]) -> None:
    assert messages([{"role": "user", "content": "Hei"}, reasoning]) == [{"role": "user", "content": "Hei"}]


def test_items_of_hosted_tools_are_left_out_and_counted() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
    request = parsed(input=[{"role": "user", "content": "Hei"}, search])
    assert list(prompt_of(request.to_core()).messages) == [{"role": "user", "content": "Hei"}]
    assert request.ignored == IgnoredFields(in_messages=1)


def test_unknown_fields_of_items_are_ignored_and_counted() -> None:
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Hei", "new": 1}], "mood": "good"}]
    assert parsed(input=items).ignored.in_messages == 2


def test_calls_of_custom_tools_become_function_calls() -> None:
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"}
    answer, result = messages([call, output])
    assert answer["tool_calls"][0]["function"] == {"name": "apply_patch", "arguments": {"input": "*** Begin"}}
    assert result["content"] == "ok"


def test_call_of_a_namespace_has_its_full_name_in_the_prompt() -> None:
    (answer,) = messages([{**CALL, "namespace": "crm"}])
    assert answer["tool_calls"][0]["function"]["name"] == "crm__f"


def test_output_without_its_call_is_refused() -> None:
    error = refusal(input=[{"role": "user", "content": "Hei"}, OUTPUT])
    assert error.param == "input[1].call_id"


@pytest.mark.parametrize("choice", [None, "auto", "none", {"type": "allowed_tools", "mode": "auto", "tools": [SEARCH]}])
def test_hosted_tools_are_left_out_and_named(choice: Any) -> None:
    request = parsed(tools=[SEARCH, FUNCTION, NAMESPACE, CUSTOM], tool_choice=choice)
    assert request.ignored.tools == ("web_search", "crm.custom:apply_patch", "custom:apply_patch")
    assert [tool["name"] for tool in request.form().repeated["tools"]] == ["f", "crm__find"]


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "web_search"}, "tool_choice.type"),
        ({"type": "custom", "name": "apply_patch"}, "tool_choice.type"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
        ("required", "tool_choice"),
    ],
    ids=str,
)
def test_choice_that_demands_a_hosted_tool_is_refused(choice: Any, param: str) -> None:
    error = refusal(tools=[SEARCH], tool_choice=choice)
    assert (error.param, error.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("choice", "kind", "name", "allowed"),
    [
        ("auto", "auto", None, None),
        ("required", "required", None, None),
        ({"type": "function", "name": "f"}, "named", "f", None),
        ({"type": "function", "name": "crm__find"}, "named", "crm__find", None),
        ({"type": "function", "name": "find", "namespace": "crm"}, "named", "crm__find", None),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}, SEARCH]},
            "required",
            None,
            frozenset({"f"}),
        ),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]}, "auto", None, frozenset({"f"})),
    ],
    ids=str,
)
def test_tool_choice_has_its_meaning_in_chat(choice: Any, kind: str, name: str | None, allowed: Any) -> None:
    found = tools(tools=[FUNCTION, NAMESPACE], tool_choice=choice)
    assert found is not None
    assert (found.choice, found.name, found.allowed) == (kind, name, allowed)


@pytest.mark.parametrize(
    "fields", [{}, {"tools": []}, {"tools": [SEARCH]}, {"tools": [FUNCTION], "tool_choice": "none"}]
)
def test_prompt_has_no_tools_when_none_may_be_called(fields: dict[str, Any]) -> None:
    assert tools(parallel_tool_calls=False, **fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [FUNCTION, FUNCTION]}, "tools[1].name"),
        ({"tools": [{**FUNCTION, "name": "crm__find"}, NAMESPACE]}, "tools[1].tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tools": [{**FUNCTION, "parameters": {"type": "string"}}]}, "tools[0].parameters.type"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "nonsense"}]}, "input[0].type"),
        ({"input": None}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 5}}}}, "text.format.schema"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"unknown": 1}, "unknown"),
    ],
    ids=str,
)
def test_errors_name_the_field(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param is not None
    assert error.param.startswith(param)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("messages", "input"), ("max_tokens", "max_output_tokens"), ("response_format", "text"), ("inputs", "input")],
)
def test_fields_of_chat_are_refused_with_a_hint(name: str, meant: str) -> None:
    assert f"Did you mean '{meant}'?" in refusal(**{name: 1}).message


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}, "text.format.schema"),
        ({"type": "json_object"}, "text.format.type"),
    ],
    ids=str,
)
def test_format_becomes_the_constraint_of_chat(form: dict[str, Any], param: str) -> None:
    inner = {name: value for name, value in form.items() if name != "type"}
    chat_form = {"type": form["type"], **({"json_schema": inner} if inner else {})}
    body = {"model": "m", "messages": [{"role": "user", "content": "Hei"}], "response_format": chat_form}
    chat = validated(ChatRequest, json.dumps(body).encode()).constraint
    constraint = parsed(text={"format": form}).constraint
    assert chat is not None
    assert constraint is not None
    assert (constraint.kind, constraint.text, constraint.param) == (chat.kind, chat.text, param)
    assert parsed(text={"format": {"type": "text"}}).constraint is None


def test_constraint_of_a_named_function_names_its_place() -> None:
    constraint = parsed(tools=[SEARCH, FUNCTION], tool_choice={"type": "function", "name": "f"}).constraint
    assert constraint is not None
    assert constraint.param == "tools[1].parameters"


def test_fields_of_codex_are_accepted() -> None:
    request = parsed(
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hei"}]},
        ],
        instructions="You are an agent.",
        stream=True,
        store=False,
        include=["reasoning.encrypted_content"],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"summary": "auto", "context": "none"},
        prompt_cache_key="key",
        client_metadata={"x-codex-installation-id": "1"},
        tools=[{**FUNCTION, "strict": False}, NAMESPACE, {"type": "web_search", "external_web_access": False}],
    )
    assert [message["role"] for message in prompt_of(request.to_core()).messages] == ["system", "user"]


def test_image_is_carried_beside_the_text() -> None:
    url = "data:image/png;base64,AAAA"
    content = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": url, "detail": "auto"}]
    prompt = prompt_of(parsed(input=[{"role": "user", "content": content}]).to_core())
    assert [(image.url, image.param) for image in prompt.images] == [(url, "input[0].content[1]")]
    assert prompt.messages[0]["content"] == "What?"


def test_message_of_a_websocket_is_a_streamed_request() -> None:
    body = {"model": "m", "input": "Hei", "store": False, "metadata": {"a": "b"}}
    plain = validated(ResponsesRequest, json.dumps(body).encode()).parsed()
    for more in ({}, {"stream": True}, {"stream": None}, {"generate": True}):
        message = json.dumps({"type": "response.create", **body, **more}).encode()
        event = validated(ResponseCreate, message).parsed()
        # Items without an id get a random one.
        assert replace(event.form, items=()) == replace(plain.form, stream=True, items=())
        assert event.request == replace(plain.request, id=event.request.id)

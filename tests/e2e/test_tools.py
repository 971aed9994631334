"""Tool calls on the real engine, streamed and plain, with the openai package.

The embedded model's template does not support tools, so the server adds its own tool prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import jsonschema_rs
import pytest
from openai import OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel

from tests.program import Program
from tests.wire import calls_of, endings, folded, metric, post, stream

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"
MODEL = "SmolLM2-135M-Instruct"
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 16},
        "days": {"$ref": "#/$defs/days"},
        "unit": {"enum": ["°C", "°F"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
SCHEMAS: dict[str, Any] = {
    "get_weather": WEATHER,
    "search-web": {
        "type": "object",
        "properties": {"words": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3}},
        "required": ["words"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": f"Use it to {name}.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
ASK: list[Any] = [{"role": "user", "content": "What will the weather be in Oulu tomorrow?"}]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
WARM = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}
BODY = {"model": MODEL, "messages": ASK, "tools": TOOLS, "max_completion_tokens": 400}


@pytest.fixture(scope="module")
def client(smollm2: Program) -> Iterator[httpx.Client]:
    with smollm2.client() as client:
        yield client


@pytest.fixture(scope="module")
def openai(smollm2: Program) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def check(message: ChatCompletionMessage, most: int = 16) -> None:
    """Check that a message holds only valid tool calls, at most `most`."""
    assert message.content is None
    assert message.tool_calls
    assert len(message.tool_calls) <= most
    assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)
    for call in message.tool_calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        assert jsonschema_rs.is_valid(SCHEMAS[call.function.name], json.loads(call.function.arguments))


@pytest.mark.parametrize(("seed", "parallel"), [(1, True), (2, False), (3, False)])
def test_required_always_calls_within_the_schemas(openai: OpenAI, seed: int, parallel: bool) -> None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=ASK, tools=TOOLS, tool_choice="required", seed=seed, parallel_tool_calls=parallel
    )
    check(answer.choices[0].message, most=16 if parallel else 1)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_named_function_is_called_and_nothing_else(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, tool_choice=NAMED, n=3, seed=4)
    for choice in answer.choices:
        check(choice.message, most=1)
        assert choice.message.tool_calls is not None
        call = choice.message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert choice.finish_reason == "stop"


CHOICES: list[dict[str, Any]] = [
    {"tool_choice": "required", "max_completion_tokens": 150},
    {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0.8, "seed": 5},
    {"tool_choice": NAMED},
    {"tool_choice": "auto", "max_completion_tokens": 24},
    {"tool_choice": "none", "max_completion_tokens": 20},
    {"tool_choice": "required", "max_completion_tokens": 3},
    {"tool_choice": "required", "max_completion_tokens": 18},
    {"tool_choice": NAMED, "max_completion_tokens": 6},
    {"tool_choice": "required", "stop": ["Oulu", "days"]},
    {"tool_choice": "required", "n": 3, "temperature": 1, "seed": 6, "max_completion_tokens": 80},
]


def said_in(choice: dict[str, Any]) -> tuple[str, list[tuple[str, str]], str]:
    """Return text, tool calls and finish_reason of a plain response's choice."""
    return choice["message"]["content"] or "", calls_of(choice), choice["finish_reason"]


def check_said(said: tuple[str, list[tuple[str, str]], str], stop_reason: Any, tool_choice: Any) -> None:
    """Check the facts that hold for any text of the model: two generations of the real engine may differ.

    tests/contract/test_tools.py shows on the scripted engine that a stream adds up to the plain response.
    """
    text, calls, finish = said
    assert {name for name, _ in calls} <= SCHEMAS.keys()
    is_cut = finish == "length" or stop_reason is not None
    for name, arguments in calls[:-1] if is_cut else calls:
        assert jsonschema_rs.is_valid(SCHEMAS[name], json.loads(arguments))
    if tool_choice == "none":
        assert not calls
    elif tool_choice == NAMED:
        assert [name for name, _ in calls] == ["get_weather"]
    elif tool_choice == "required":
        assert calls or is_cut
    if tool_choice in (NAMED, "required"):
        assert not text
    assert finish in ("length", "tool_calls" if calls and tool_choice != NAMED else "stop")


@pytest.mark.parametrize("fields", CHOICES, ids=str)
def test_calls_are_whole_and_valid_streamed_and_not(client: httpx.Client, fields: dict[str, Any]) -> None:
    body = {**BODY, "temperature": 0, **fields}
    plain, chunks = post(client, CHAT, body), stream(client, CHAT, body)
    indices = list(range(fields.get("n", 1)))
    assert [choice["index"] for choice in plain["choices"]] == indices
    for choice in plain["choices"]:
        check_said(said_in(choice), choice["stop_reason"], fields["tool_choice"])
    for index, _, stop_reason in sorted(endings(chunks)):
        check_said(folded(chunks, index), stop_reason, fields["tool_choice"])
    assert sorted(index for index, *_ in endings(chunks)) == indices


def test_cut_tool_call_ends_with_length_and_keeps_its_arguments(client: httpx.Client) -> None:
    # The schema allows only one text.
    schema = {"type": "object", "properties": {"city": {"const": "Rovaniemi"}}, "required": ["city"]}
    function = {"name": "get_weather", "parameters": {**schema, "additionalProperties": False}}
    body = {**BODY, "tools": [{"type": "function", "function": function}], "tool_choice": NAMED}
    whole = '{"city":"Rovaniemi"}'
    (choice,) = post(client, CHAT, body)["choices"]
    assert (calls_of(choice), choice["finish_reason"]) == ([("get_weather", whole)], "stop")
    (choice,) = post(client, CHAT, {**body, "max_completion_tokens": 5})["choices"]
    ((_, arguments),) = calls_of(choice)
    assert choice["finish_reason"] == "length"
    assert 0 < len(arguments) < len(whole)
    assert whole.startswith(arguments)


def test_a_model_that_answers_in_text_may_do_so(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=ASK, tools=TOOLS, max_completion_tokens=30, temperature=0
    )
    choice = answer.choices[0]
    assert (choice.finish_reason == "tool_calls") == bool(choice.message.tool_calls)
    assert choice.message.content or choice.message.tool_calls
    told = answer.usage
    untold = openai.chat.completions.create(
        model=MODEL, messages=ASK, tools=TOOLS, tool_choice="none", max_completion_tokens=1
    )
    # The prompt describes the functions only if they may be called.
    assert told is not None
    assert untold.usage is not None
    assert told.prompt_tokens > untold.usage.prompt_tokens + 100


def test_a_model_that_writes_a_call_has_called(client: httpx.Client) -> None:
    # The prompt leads the model to write a tool call.
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    body = {**BODY, "tool_choice": "auto", "temperature": 0, "max_completion_tokens": 32}
    body["messages"] = [*ASK, {"role": "user", "content": f"Repeat exactly, and nothing else:\n{call}"}]
    (choice,) = post(client, CHAT, body)["choices"]
    for text, calls, finish in (said_in(choice), folded(stream(client, CHAT, body))):
        assert {name for name, _ in calls} <= SCHEMAS.keys()
        assert text or calls
        assert finish in ("length", "tool_calls" if calls else "stop")


class Weather(BaseModel):
    """The weather of some days."""

    city: str
    unit: Literal["C", "F"]


def test_openai_package_parses_calls_and_sends_them_as_history(openai: OpenAI) -> None:
    tools = [pydantic_function_tool(Weather)]
    fields: dict[str, Any] = {"model": MODEL, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    parsed = openai.chat.completions.parse(messages=ASK, **fields)
    message = parsed.choices[0].message
    assert message.tool_calls
    assert isinstance(message.tool_calls[0].function.parsed_arguments, Weather)
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "-3 degrees, snow"}
    history: list[Any] = [*ASK, message, result]
    answer = openai.chat.completions.create(model=MODEL, messages=history, tools=tools, max_completion_tokens=30)
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_the_openai_package_s_stream_reports_every_piece(openai: OpenAI) -> None:
    pieces = ""
    with openai.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[pydantic_function_tool(Weather)], tool_choice="required", seed=2
    ) as events:
        for event in events:
            if event.type == "tool_calls.function.arguments.delta" and event.index == 0:
                pieces += event.arguments_delta
        final = events.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    assert pieces == calls[0].function.arguments
    assert isinstance(calls[0].function.parsed_arguments, Weather)


def test_tool_call_answer_has_the_logprobs_of_all_tokens(client: httpx.Client) -> None:
    body = {**BODY, "tool_choice": NAMED, "logprobs": True, "temperature": 0}
    answer = post(client, CHAT, body)
    (choice,) = answer["choices"]
    scored = choice["logprobs"]["content"]
    written = b"".join(bytes(token["bytes"]) for token in scored).decode()
    assert written == calls_of(choice)[0][1]
    assert len(scored) in (answer["usage"]["completion_tokens"], answer["usage"]["completion_tokens"] - 1)


def test_calls_have_an_outcome_of_their_own(client: httpx.Client) -> None:
    before = metric(client, "tokka_requests_total", outcome="tool_calls")
    post(client, CHAT, {**BODY, "tool_choice": "required", "parallel_tool_calls": False})
    assert metric(client, "tokka_requests_total", outcome="tool_calls") == before + 1


def test_as_many_functions_as_may_be_are_enforced_at_once(client: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": WEATHER}} for i in range(128)]
    body = {**BODY, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (choice,) = post(client, CHAT, {**body, "truncate_prompt_tokens": 500})["choices"]
    ((name, arguments),) = calls_of(choice)
    assert name.startswith("f")
    assert jsonschema_rs.is_valid(WEATHER, json.loads(arguments))


@pytest.mark.parametrize("choice", ["required", NAMED], ids=str)
def test_uncompilable_schema_is_refused_only_when_strict(client: httpx.Client, choice: Any) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}}
    function = {"name": "get_weather", "parameters": schema}
    body = {**BODY, "tool_choice": choice, "max_completion_tokens": 30}
    answer = client.post(CHAT, json={**body, "tools": [{"type": "function", "function": {**function, "strict": True}}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tools")
    # Without `strict`, any object is allowed.
    (choice,) = post(client, CHAT, {**body, "tools": [{"type": "function", "function": function}]})["choices"]
    assert calls_of(choice)[0][1].startswith("{")


def test_unsupported_keywords_are_dropped_unless_strict(client: httpx.Client) -> None:
    day = {"oneOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"const": 0}], "format": "int32"}
    schema = {"type": "object", "properties": {"day": day, "warm": {"type": "boolean"}}, "required": ["day", "warm"]}
    function = {"name": "get_weather", "parameters": {**schema, "additionalProperties": False}}
    body = {**BODY, "tools": [{"type": "function", "function": function}]}
    for choice in (NAMED, "required"):
        (answer,) = post(client, CHAT, {**body, "tool_choice": choice, "parallel_tool_calls": False})["choices"]
        arguments = json.loads(calls_of(answer)[0][1])
        assert arguments.keys() == {"day", "warm"}
        assert (0 <= arguments["day"] <= 9, type(arguments["warm"])) == (True, bool)
    strict = {"type": "function", "function": {**function, "strict": True}}
    refused = client.post(CHAT, json={**body, "tool_choice": NAMED, "tools": [strict]}).json()["error"]
    assert refused["param"] == "tools[0].function.parameters.properties.day.format"


def test_deadline_ends_a_call_with_its_partial_arguments(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "minLength": 4000}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}]
    body = {**BODY, "tools": tools, "tool_choice": NAMED, "timeout": 2, "max_completion_tokens": 6000}
    (choice,) = post(client, CHAT, body)["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "timeout")
    begun = '{"x":"'
    # A slow engine may have generated only a part of it.
    assert calls_of(choice)[0][1][: len(begun)] in (begun[:length] for length in range(len(begun) + 1))


def test_strict_functions_leave_text_free_when_tool_choice_is_auto(client: httpx.Client) -> None:
    strict = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    body = {**BODY, "tools": strict, "temperature": 0, "max_completion_tokens": 24}
    (choice,) = post(client, CHAT, body)["choices"]
    check_said(said_in(choice), choice["stop_reason"], "auto")
    assert choice["message"]["content"] or calls_of(choice)


def test_beside_a_response_format_the_answer_has_it_or_calls(client: httpx.Client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WARM, "strict": True}}
    body = {**BODY, "response_format": form, "temperature": 0, "max_completion_tokens": 60}
    (choice,) = post(client, CHAT, body)["choices"]
    if calls := calls_of(choice):
        assert {name for name, _ in calls} <= {tool["function"]["name"] for tool in TOOLS}
    else:
        assert set(json.loads(choice["message"]["content"])) == {"warm"}
    (forced,) = post(client, CHAT, {**body, "tool_choice": "required"})["choices"]
    assert calls_of(forced)


# -- closed objects, and numbers that end

OPEN = {
    "type": "object",
    "properties": {"path": {"enum": ["a.txt", "b.txt"]}, "offset": {"type": "integer"}},
    "required": ["path"],
}
OPEN_TOOLS = [{"type": "function", "function": {"name": "read", "description": "Read a file.", "parameters": OPEN}}]


@pytest.mark.parametrize("seed", range(6))
def test_required_calls_hold_only_declared_arguments(client: httpx.Client, seed: int) -> None:
    body = {**BODY, "tools": OPEN_TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    answer = post(client, CHAT, {**body, "max_completion_tokens": 80, "temperature": 1.5, "seed": seed})
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    for _, arguments in calls_of(choice):
        pairs = json.loads(arguments, object_pairs_hook=list)
        assert {"path"} <= {name for name, _ in pairs} <= {"path", "offset"}
        assert len({name for name, _ in pairs}) == len(pairs)


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object", "properties": {}}], ids=str)
def test_a_function_without_properties_is_called_without(client: httpx.Client, parameters: Any) -> None:
    tools = [{"type": "function", "function": {"name": "list_files", "parameters": parameters}}]
    for choice in ("required", {"type": "function", "function": {"name": "list_files"}}):
        answer = post(client, CHAT, {**BODY, "tools": tools, "tool_choice": choice, "parallel_tool_calls": False})
        assert calls_of(answer["choices"][0]) == [("list_files", "{}")]


def test_an_integer_argument_ends(client: httpx.Client) -> None:
    seven = {str(post(client, "/tokenize", {"prompt": "7"})["tokens"][0]): 100}
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    body = {**BODY, "tools": tools, "tool_choice": {"type": "function", "function": {"name": "f"}}}
    answer = post(client, CHAT, {**body, "logit_bias": seven, "temperature": 0})
    assert calls_of(answer["choices"][0]) == [("f", '{"n":' + "7" * 19 + "}")]


def test_a_message_of_the_openai_stream_helper_goes_back(openai: OpenAI) -> None:
    with openai.chat.completions.stream(
        model=MODEL, messages=ASK, tools=TOOLS, tool_choice="required", max_completion_tokens=400
    ) as events:
        message = events.get_final_completion().choices[0].message
    assert message.tool_calls
    results: list[Any] = [{"role": "tool", "tool_call_id": call.id, "content": []} for call in message.tool_calls]
    history: list[Any] = [*ASK, message, *results]
    answer = openai.chat.completions.create(model=MODEL, messages=history, tools=TOOLS, max_completion_tokens=5)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_effort_and_verbosity_change_nothing_here(client: httpx.Client) -> None:
    body = {"model": MODEL, "messages": ASK, "max_completion_tokens": 5, "temperature": 0}
    plain = post(client, CHAT, body)
    given = post(client, CHAT, {**body, "reasoning_effort": "none", "verbosity": "low"})
    assert (given["choices"], given["usage"]["prompt_tokens"]) == (plain["choices"], plain["usage"]["prompt_tokens"])


def test_tokenize_counts_tools_as_a_chat_does(client: httpx.Client) -> None:
    answer = post(client, "/tokenize", {"messages": ASK, "tools": TOOLS, "return_token_strs": True})
    chat = post(client, CHAT, {**BODY, "max_completion_tokens": 1})
    assert answer["count"] == len(answer["token_strs"]) == chat["usage"]["prompt_tokens"]
    assert answer["token_strs"][0] == "<|im_start|>"

"""Messages that clients send back: other servers' fields, empty parts, and calls of unknown functions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import ValidationError

from tests.protocol.bodies import CHAT, chat
from tokka.core import IgnoredFields
from tokka.errors import InvalidRequest, UnsupportedParameter
from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import CompletionRequest
from tokka.protocol.models import TokenizeRequest
from tokka.protocol.validation import validated, without_unknown

USER = {"role": "user", "content": "Hei"}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "x"}
EXTRAS = ("is_error", "approxNumTokens", "cache_control", "reasoning_details", "provider_specific_fields", "id")


def messages_of(*messages: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return chat(messages=list(messages)).prompt().messages


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("value", [None, True, "x", {"deep": [1]}], ids=str)
def test_unknown_fields_of_messages_are_ignored(name: str, value: Any) -> None:
    extra = {name: value}
    bare: list[dict[str, Any]] = [{**USER, "content": [{"type": "text", "text": "Hei"}]}, CALLS, RESULT]
    call = {**CALL, "index": 0, "extra": value, "function": {**CALL["function"], **extra}}
    full: list[dict[str, Any]] = [
        {**USER, "content": [{"type": "text", "text": "Hei", **extra}], **extra},
        {**CALLS, "tool_calls": [call], **extra},
        {**RESULT, **extra},
    ]
    assert messages_of(*full) == messages_of(*bare)
    assert chat(messages=full).parsed().ignored == IgnoredFields(in_messages=6)
    assert chat(messages=bare).parsed().ignored == IgnoredFields()
    raw = json.dumps({"messages": full})
    assert TokenizeRequest.model_validate_json(raw).parsed().ignored == IgnoredFields(in_messages=6)


def test_a_message_of_openai_s_stream_helper_is_taken_back() -> None:
    function = {**CALL["function"], "parsed_arguments": None}
    folded = {**CALLS, "refusal": None, "parsed": None, "tool_calls": [{**CALL, "index": 0, "function": function}]}
    assert messages_of(USER, folded, RESULT) == messages_of(USER, CALLS, RESULT)
    assert chat(messages=[USER, folded, RESULT]).parsed().ignored == IgnoredFields()


@pytest.mark.parametrize("content", [None, "", []], ids=str)
def test_content_beside_calls_may_be_empty(content: Any) -> None:
    assert messages_of(USER, {**CALLS, "content": content}, RESULT) == messages_of(USER, CALLS, RESULT)


def test_content_of_a_tool_message_may_be_an_empty_list() -> None:
    assert messages_of(USER, CALLS, {**RESULT, "content": []})[-1]["content"] == ""


@pytest.mark.parametrize(
    "fields",
    [{}, {"content": None}, {"content": []}, {"content": None, "tool_calls": []}, {"tool_calls": None}],
    ids=str,
)
def test_an_assistant_message_without_content_is_empty(fields: dict[str, Any]) -> None:
    assert messages_of(USER, {"role": "assistant", **fields}) == (USER, {"role": "assistant", "content": ""})


@pytest.mark.parametrize("name", ["Read File", "mcp.read", "läs", "x" * 256])
def test_a_call_in_history_may_have_any_name(name: str) -> None:
    call = {**CALL, "function": {"name": name, "arguments": "{}"}}
    assert messages_of(USER, {**CALLS, "tool_calls": [call]})[1]["tool_calls"][0]["function"]["name"] == name


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none", "parallel_tool_calls": True}])
def test_an_empty_list_of_tools_is_no_tools(choice: dict[str, Any]) -> None:
    request = chat(tools=[], **choice).to_core()
    assert (request.prompts, request.sampling.constraint) == (chat().to_core().prompts, None)


NEUTRAL = {
    "no_stop_trim": False,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "return_hidden_states": False,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_fields_that_routers_add_pass_when_neutral(name: str) -> None:
    for model, body in ((ChatRequest, CHAT), (CompletionRequest, {"model": "m", "prompt": "a"})):
        for value in (None, NEUTRAL[name]):
            assert model.model_validate_json(json.dumps({**body, name: value}))
        with pytest.raises(ValidationError, match=f"Only {str(NEUTRAL[name]).lower()} is supported"):
            model.model_validate_json(json.dumps({**body, name: not NEUTRAL[name]}))
        with pytest.raises(ValidationError, match="valid boolean"):
            model.model_validate_json(json.dumps({**body, name: int(NEUTRAL[name])}))


# -- unknown fields of the body


MEANT = {
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "max_new_tokens": "max_completion_tokens",
    "num_predict": "max_completion_tokens",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "enable_thinking": "chat_template_kwargs",
    "temprature": "temperature",
    "Temperature": "temperature",
}


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        validated(ChatRequest, json.dumps({**CHAT, **fields}).encode())
    return caught.value


@pytest.mark.parametrize("name", MEANT)
def test_an_unknown_field_names_the_one_that_was_meant(name: str) -> None:
    error = refusal(**{name: 1})
    assert f"'{name}'. Did you mean '{MEANT[name]}'?" in error.message
    assert error.param == name


def test_an_unknown_field_like_no_other_has_no_hint() -> None:
    assert "Did you mean" not in refusal(session_id="x").message
    assert "Did you mean" not in refusal(stream=True, stream_options={"temprature": 1}).message


def test_functions_are_answered_with_tools() -> None:
    for name, remedy in (("functions", "tools"), ("function_call", "tool_choice")):
        error = refusal(**{name: []})
        assert isinstance(error, UnsupportedParameter)
        assert f"Use '{remedy}' instead" in error.message
    assert "Leave it out" in refusal(audio={}).message


def test_unknown_fields_are_left_out_when_asked_for() -> None:
    fields = {"num_ctx": 5, "keep_alive": "5m", "session_id": {"a": [1]}}
    raw = json.dumps({**CHAT, **fields}).encode()
    request = without_unknown(ChatRequest, raw)
    assert request.parsed().ignored == IgnoredFields(("num_ctx", "keep_alive", "session_id"))
    assert request.prompt() == chat().prompt()
    assert without_unknown(ChatRequest, json.dumps(CHAT).encode()).parsed().ignored == IgnoredFields()
    # Unknown fields below the top level and other errors are still refused.
    refused: list[Any] = [{"stream": True, "stream_options": {"x": 1}}, {"temperature": 9}, {"functions": []}]
    for wrong in refused:
        for more in ({}, fields):
            with pytest.raises(InvalidRequest) as caught:
                without_unknown(ChatRequest, json.dumps({**CHAT, **wrong, **more}).encode())
            assert caught.value.param in ("stream_options.x", "temperature", "functions")


def test_every_parameter_of_openai_s_package_is_known() -> None:
    for model, params in ((ChatRequest, chat_params), (CompletionRequest, completion_params)):
        assert params.CompletionCreateParamsBase.__annotations__.keys() <= model.model_fields.keys()


# Always accepted. It has an effect only if the chat template reads it.
@pytest.mark.parametrize("value", ["low", "medium", "high"])
def test_verbosity_goes_with_the_prompt(value: str) -> None:
    assert chat(verbosity=value).prompt().verbosity == value
    with pytest.raises(ValidationError, match="send it once"):
        chat(verbosity=value, chat_template_kwargs={"verbosity": value})

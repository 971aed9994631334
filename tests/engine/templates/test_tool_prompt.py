"""Tools for a chat template without tool support: it gets only roles and text, and no content is lost."""

from __future__ import annotations

import json
from typing import Any

from tests.engine.reading.read import read
from tests.engine.reading.tool_texts import TOOLS
from tokka.engine.reading.forms import FORMS
from tokka.engine.templates.tool_prompt import FALLBACK_PARSER, without_tools

USER = {"role": "user", "content": "Hi {there}"}
CALLS: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "now", "arguments": {"zone": "ä"}}},
        {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": {}}},
    ],
}
RESULT = {"role": "tool", "content": "12:00", "tool_call_id": "a"}


def test_system_message_describes_every_function() -> None:
    system, user = without_tools([USER], TOOLS.functions)
    assert (system["role"], user) == ("system", USER)
    for tool in TOOLS.functions:
        assert json.dumps(tool["function"], separators=(",", ":")) in system["content"]
    assert '{"name": "function_name", "arguments": {"parameter": "value"}}' in system["content"]


def test_a_system_message_that_is_there_stays_first_and_whole() -> None:
    messages = without_tools([{"role": "system", "content": "Be brief."}, USER], TOOLS.functions)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"].startswith("Be brief.\n\n")
    assert "get_weather" in messages[0]["content"]


def test_calls_that_were_made_are_text_the_parser_would_read() -> None:
    (message,) = without_tools([CALLS], ())
    assert set(message) == {"role", "content"}
    calls, text = read(FORMS[FALLBACK_PARSER], [message["content"]])
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("now", {"zone": "ä"}), ("get_weather", {})]
    assert text == ""


def test_text_beside_a_call_is_kept() -> None:
    (message,) = without_tools([{**CALLS, "content": "Let me see."}], ())
    assert message["content"].startswith("Let me see.\n<tool_call>")


def test_tool_result_becomes_a_user_message() -> None:
    (message,) = without_tools([RESULT], ())
    assert message == {"role": "user", "content": "<tool_response>\n12:00\n</tool_response>"}


def test_without_tools_a_conversation_stays_as_it_is() -> None:
    assert without_tools([USER], ()) == [USER]


def test_results_and_the_next_user_text_become_one_message() -> None:
    messages = without_tools([USER, CALLS, RESULT, {**RESULT, "content": "Rain"}, {**USER, "content": "Well?"}], ())
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    response = "<tool_response>\n{}\n</tool_response>\n"
    assert messages[-1]["content"] == response.format("12:00") + response.format("Rain") + "Well?"


def test_call_and_the_text_before_it_become_one_message() -> None:
    (message,) = without_tools([{"role": "assistant", "content": "Let me see."}, CALLS], ())
    assert message["content"].startswith("Let me see.\n<tool_call>")


def test_turns_without_calls_are_not_joined() -> None:
    assert without_tools([USER, USER], ()) == [USER, USER]


def test_first_user_message_has_the_tools_without_a_system_role() -> None:
    system, begun = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hello."}
    messages = without_tools([system, begun, USER, begun, USER], TOOLS.functions, takes_system=False)
    assert [message["role"] for message in messages] == ["system", "assistant", "user", "assistant", "user"]
    assert "get_weather" in messages[2]["content"]
    assert messages[2]["content"].endswith("\n\nHi {there}")
    assert [messages[0], messages[1], messages[4]] == [system, begun, USER]


def test_user_message_with_tools_is_added_when_none_exists() -> None:
    system, begun = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hello."}
    messages = without_tools([system, begun], TOOLS.functions, takes_system=False)
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert "get_weather" in messages[1]["content"]

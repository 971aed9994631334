"""The changes that a chat template needs in a conversation with tools, and how they are found."""

from __future__ import annotations

from typing import Any

from tokka.engine.templates.rules import Messages, TemplateRules, find_rules

USER = {"role": "user", "content": "Hi"}


def call(call_id: str, arguments: Any = None) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": f"f_{call_id}", "arguments": arguments or {}}}


def result(call_id: str, text: str = "done") -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": call_id}


def test_without_rules_nothing_is_changed() -> None:
    calling = {"role": "assistant", "content": "", "tool_calls": [call("a"), call("b")]}
    messages: list[dict[str, Any]] = [USER, calling, result("a")]
    assert TemplateRules().kept(messages, None) == (messages, None)


def test_each_call_gets_a_message_with_its_results_behind_it() -> None:
    said = {"role": "assistant", "content": "See.", "reasoning_content": "Hm.", "tool_calls": [call("a"), call("b")]}
    messages: list[dict[str, Any]] = [USER, said, result("b"), result("x"), result("a"), result("b", "more"), USER]
    kept, _ = TemplateRules(single_calls=True).kept(messages, None)
    assert kept == [
        USER,
        {**said, "tool_calls": [call("a")]},
        result("a"),
        {"role": "assistant", "content": "", "tool_calls": [call("b")]},
        result("b"),
        result("b", "more"),
        # This result belongs to a call of an earlier message.
        result("x"),
        USER,
    ]


def test_calls_that_share_an_id_lose_no_result() -> None:
    messages = [{"role": "assistant", "content": "", "tool_calls": [call("a"), call("a")]}, result("a"), result("a")]
    kept, _ = TemplateRules(single_calls=True).kept(messages, None)
    assert [message["role"] for message in kept] == ["assistant", "tool", "tool", "assistant"]


def test_arguments_are_made_text_and_text_stays_text() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [call("a", {"ä": [1, None]}), call("b", "{broken")]}
    ((kept,), _) = TemplateRules(text_arguments=True).kept([message], None)
    assert [each["function"]["arguments"] for each in kept["tool_calls"]] == ['{"ä": [1, null]}', "{broken"]


def test_rules_do_not_change_messages_in_place() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [call("a", {"x": 1}), call("b")]}
    rules = TemplateRules(short_ids=True, text_arguments=True, single_calls=True)
    rules.kept([message, result("a")], None)
    assert message == {"role": "assistant", "content": "", "tool_calls": [call("a", {"x": 1}), call("b")]}


def test_a_template_that_takes_no_trial_is_left_as_it_is() -> None:
    def write(messages: Messages, tools: Messages | None) -> str:
        raise ValueError("never")

    assert find_rules(write, knows_tools=True) == TemplateRules()
    assert find_rules(write, knows_tools=False) == TemplateRules(knows_tools=False)


def test_find_rules_probes_a_template_that_takes_only_one_call() -> None:
    def write(messages: Messages, tools: Messages | None) -> str:
        calls = [each for message in messages for each in message.get("tool_calls", ())]
        assert len(calls) == 1
        assert len(calls[0]["id"]) == 9
        return f"{messages}".replace("'", "")

    assert find_rules(write, knows_tools=True) == TemplateRules(short_ids=True)

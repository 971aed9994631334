"""Finds a chat template's requirements for conversations by trial rendering, and applies them. Pure functions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product, takewhile
from typing import Any, TypeAlias

from tokka.engine.templates.late_messages import with_text_in_tool_results, with_user_for_late_system
from tokka.engine.templates.tool_prompt import without_tools

Messages: TypeAlias = list[dict[str, Any]]
# Renders messages and tools with the template. May raise any exception for input that the template refuses.
Write: TypeAlias = Callable[[Messages, Messages | None], str]

_ID_LENGTH = 9
_SHORT_ID = re.compile(rf"[a-zA-Z0-9]{{{_ID_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class TemplateRules:
    """A chat template's requirements for conversations."""

    knows_tools: bool = True
    # Matters only without tool support: the system message then describes the tools.
    takes_system: bool = True
    # Mistral: tool call ids have nine letters and digits.
    short_ids: bool = False
    # DeepSeek: the template concatenates the arguments, so they must be text.
    text_arguments: bool = False
    # Llama 3 refuses a second tool call in a message; gpt-oss drops it.
    single_calls: bool = False
    # The template writes a system message inside the conversation in its place.
    late_system: bool = True
    # The template takes a message of the user directly behind a tool result. Mistral's refuse it.
    user_after_tool: bool = True

    def kept(
        self, messages: Messages, tools: Messages | None, sign: Callable[[str], str] = str
    ) -> tuple[Messages, Messages | None]:
        """Return messages and tools as the template requires them. `sign`: as in `without_tools`."""
        if not self.late_system:
            messages = with_user_for_late_system(messages)
        if not self.user_after_tool:
            messages = with_text_in_tool_results(messages)
        if not self.knows_tools:
            return without_tools(messages, tools or (), takes_system=self.takes_system, sign=sign), None
        if self.single_calls:
            messages = _one_call_each(messages)
        return [self._message(message) for message in messages], tools

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        if calls := message.get("tool_calls"):
            return {**message, "tool_calls": [self._call(call) for call in calls]}
        if message["role"] == "tool":
            return {**message, "tool_call_id": self._id(message["tool_call_id"])}
        return message

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        if self.text_arguments and not isinstance(function["arguments"], str):
            # The same text as the filter `tojson` of other templates.
            function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        return {**call, "id": self._id(call["id"]), "function": function}

    def _id(self, call_id: str) -> str:
        if not self.short_ids or _SHORT_ID.fullmatch(call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:_ID_LENGTH]


def find_rules(write: Write, *, knows_tools: bool) -> TemplateRules:
    """Return the template's requirements; no requirements if every trial fails."""
    return replace(_tool_rules(write, knows_tools=knows_tools), late_system=_takes_late_system(write))


def _tool_rules(write: Write, *, knows_tools: bool) -> TemplateRules:
    if not knows_tools:
        system, user = {"role": "system", "content": "trial-system"}, {"role": "user", "content": "trial-user"}
        takes_system = _shows(write, [system, user], None, ["trial-system"])
        return TemplateRules(
            knows_tools=False, takes_system=takes_system or not _shows(write, [user], None, ["trial-user"])
        )
    for count in (2, 1):
        for single_calls, text_arguments, short_ids in product((False, True), repeat=3):
            rules = TemplateRules(short_ids=short_ids, text_arguments=text_arguments, single_calls=single_calls)
            if _takes_loop(write, rules, count):
                return replace(rules, user_after_tool=_takes_loop(write, rules, count, "trial-note"))
    return TemplateRules()


def _takes_late_system(write: Write) -> bool:
    """Return whether the template writes a late system message in its place. Some refuse it, some move it up."""
    roles = ("user", "assistant", "system", "user")
    messages = [{"role": role, "content": f"trial-{number}"} for number, role in enumerate(roles)]
    marks = [message["content"] for message in messages]
    try:
        text = write(messages, None)
        places = [text.find(mark) for mark in marks]
        if -1 not in places and places == sorted(places):
            return True
    except Exception:  # noqa: S110
        # A template may refuse input with any exception.
        pass
    # If it refuses any conversation, the trial says nothing.
    return not _shows(write, [messages[0], messages[1], messages[3]], None, [marks[0], marks[1], marks[3]])


def _takes_loop(write: Write, rules: TemplateRules, count: int, note: str = "") -> bool:
    """Return whether the template renders a tool loop with `count` tool calls and their results completely.

    `note`: a message of the user behind the results.
    """
    numbers = range(count)
    calls = [
        {
            "id": f"call_{number:032x}",
            "type": "function",
            "function": {"name": f"trial_{number}", "arguments": {"trial": f"argument-{number}"}},
        }
        for number in numbers
    ]
    messages: Messages = [
        {"role": "user", "content": "trial-user"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *({"role": "tool", "content": f"result-{n}", "tool_call_id": f"call_{n:032x}"} for n in numbers),
        *([{"role": "user", "content": note}] if note else []),
    ]
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"trial_{number}",
                "description": "A trial.",
                "parameters": {"type": "object", "properties": {"trial": {"type": "string"}}, "required": ["trial"]},
            },
        }
        for number in numbers
    ]
    marks = [mark.format(number) for number in numbers for mark in ("trial_{}", "argument-{}", "result-{}")]
    return _shows(write, *rules.kept(messages, tools), [*marks, note])


def _shows(write: Write, messages: Messages, tools: Messages | None, marks: Sequence[str]) -> bool:
    try:
        text = write(messages, tools)
    except Exception:
        # A template may refuse input with any exception.
        return False
    # Arguments in Python's notation are not in the model's format.
    return all(mark in text for mark in marks) and "{'trial': 'argument" not in text


def _one_call_each(messages: Messages) -> Messages:
    """Return the conversation with one message per tool call, followed by the call's results."""
    told: Messages = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            told.append(message)
            continue
        results: dict[str, Messages] = {}
        for result in takewhile(lambda each: each["role"] == "tool", messages[place:]):
            results.setdefault(result["tool_call_id"], []).append(result)
            place += 1
        for call in calls:
            told += [{**message, "tool_calls": [call]}, *results.pop(call["id"], ())]
            # Text and reasoning belong to the first call's message only.
            message = {"role": message["role"], "content": ""}
        told += [result for late in results.values() for result in late]
    return told

"""Messages in places where some templates refuse them: instructions inside a conversation, text behind a tool result.

They never move to the front. Each turn would then change the beginning of the prompt, and the prefix cache would be
lost. Pure.
"""

from __future__ import annotations

from typing import Any

_SEPARATOR = "\n\n"


def with_user_for_late_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the conversation with each system message behind the first other message as text of the user.

    It becomes one message with neighbours of the user, because many templates require alternating roles. The system
    messages at the start become one, because many templates take only one.
    """
    told: list[dict[str, Any]] = []
    is_begun = was_changed = False
    for message in messages:
        is_late = is_begun and message["role"] == "system"
        is_begun = is_begun or message["role"] != "system"
        shown = {"role": "user", "content": message["content"]} if is_late else message
        is_second = not is_begun and bool(told)
        if is_second or (told and (is_late or was_changed) and told[-1]["role"] == shown["role"] == "user"):
            told[-1] = _joined(told[-1], shown)
        else:
            told.append(shown)
        was_changed = is_late
    return told


def with_text_in_tool_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the conversation with each message of the user behind a tool result as a part of that result."""
    told: list[dict[str, Any]] = []
    for message in messages:
        if told and told[-1]["role"] == "tool" and message["role"] == "user":
            told[-1] = _joined(told[-1], message)
        else:
            told.append(message)
    return told


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {**first, "content": _SEPARATOR.join(filter(None, (first["content"], second["content"])))}

"""Tools for a chat template without tool support: described in a message, with calls and results as text. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

# The parser for the format that this prompt asks for.
FALLBACK_PARSER = "hermes"
# The tags around descriptions, tool calls and results.
TOOL_MARKS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_PROMPT = """You can call functions. These are described by one JSON object a line:
<tools>
{tools}
</tools>
If a function helps to answer, call it: write a JSON object with its name and its arguments between these tags, and \
nothing else.
<tool_call>
{{"name": "function_name", "arguments": {{"parameter": "value"}}}}
</tool_call>
For several calls repeat the tags. The results are sent to you between <tool_response> tags. If no function helps, \
answer in plain text."""


def without_tools(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    *,
    takes_system: bool = True,
    sign: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """Return the conversation for a template that supports only roles and text.

    `takes_system`: the template supports the system role. `sign`: transforms the server's own words in the result.
    """
    plain = _as_texts(messages, sign)
    if not tools:
        return plain
    told = sign(_PROMPT).format(tools="\n".join(_json(tool["function"]) for tool in tools))
    if not takes_system:
        return _told_by_user(plain, told)
    if plain and plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{told}"}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]


def _told_by_user(plain: list[dict[str, Any]], told: str) -> list[dict[str, Any]]:
    for place, message in enumerate(plain):
        if message["role"] == "user":
            return [*plain[:place], {**message, "content": f"{told}\n\n{message['content']}"}, *plain[place + 1 :]]
    start = next((place for place, message in enumerate(plain) if message["role"] != "system"), len(plain))
    return [*plain[:start], {"role": "user", "content": told}, *plain[start:]]


def _as_texts(messages: Sequence[dict[str, Any]], sign: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return tool calls and results as text messages.

    A message made this way is merged with neighbours of the same role, since many templates require alternating roles.
    """
    turns: list[tuple[dict[str, Any], list[str]]] = []
    was_made = False
    for message in messages:
        text = _as_text(message, sign)
        is_made = text is not message
        if turns and (is_made or was_made) and turns[-1][0]["role"] == text["role"]:
            turns[-1][1].append(text["content"])
        else:
            turns.append((text, [text["content"]]))
        was_made = is_made
    return [
        first if len(parts) == 1 else {**first, "content": "\n".join(filter(None, parts))} for first, parts in turns
    ]


def _as_text(message: dict[str, Any], sign: Callable[[str], str]) -> dict[str, Any]:
    if message["role"] == "tool":
        begin, end = sign("<tool_response>"), sign("</tool_response>")
        return {"role": "user", "content": f"{begin}\n{message['content']}\n{end}"}
    if calls := message.get("tool_calls"):
        begin, end = sign("<tool_call>"), sign("</tool_call>")
        written = [f"{begin}\n{_json(_call(call))}\n{end}" for call in calls]
        return {"role": message["role"], "content": "\n".join([message["content"], *written]).lstrip("\n")}
    return message


def _call(call: dict[str, Any]) -> dict[str, Any]:
    return {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}


def _json(value: Any) -> str:
    # Not orjson: it reads deeper nesting than it can write.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

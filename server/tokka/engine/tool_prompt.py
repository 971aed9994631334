"""Tools for a chat template that knows none: told in a message of ours, calls and results as text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

# The parser of what this prompt asks for.
FALLBACK_PARSER = "hermes"
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


def without_tools(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the conversation as a template takes it that knows roles and text only."""
    plain = [_as_text(message) for message in messages]
    if not tools:
        return plain
    told = _PROMPT.format(tools="\n".join(_json(tool["function"]) for tool in tools))
    if plain and plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{told}"}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if calls := message.get("tool_calls"):
        written = [f"<tool_call>\n{_json(_call(call))}\n</tool_call>" for call in calls]
        return {"role": message["role"], "content": "\n".join([message["content"], *written]).lstrip("\n")}
    return message


def _call(call: dict[str, Any]) -> dict[str, Any]:
    return {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()

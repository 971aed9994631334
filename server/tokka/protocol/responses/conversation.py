"""From items to the messages of a conversation. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokka.core import Image
from tokka.protocol.images import image_of
from tokka.protocol.messages import plain_call
from tokka.protocol.responses.items import PlainItem, unsealed

_SUMMARY = "Summary of the conversation so far:"


def missing_call(items: Iterable[PlainItem], calls: Iterable[str] = ()) -> str | None:
    """Return the call_id of the first output without a call before it, or None.

    `calls`: ids of the calls in the conversation before the items.
    """
    made = set(calls)
    for item in items:
        call_id: str = item.get("call_id", "")
        if item["type"] == "function_call":
            made.add(call_id)
        elif item["type"] == "function_call_output" and call_id not in made:
            return call_id
    return None


def messages_of(items: Iterable[PlainItem]) -> list[dict[str, Any]]:
    """Return the messages of a conversation as chat templates know them.

    Reasoning, text and calls that follow each other become one message of the assistant.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        match item["type"]:
            case "message" if item["role"] != "assistant":
                messages.append({"role": item["role"], "content": _text(item["content"])})
            case "function_call_output":
                output = item["output"]
                text = output if isinstance(output, str) else _text(output)
                messages.append({"role": "tool", "content": text, "tool_call_id": item["call_id"]})
            case "message":
                _answer(messages, "content")["content"] = _text(item["content"])
            case "function_call":
                call = plain_call(item["call_id"], full_name(item), item["arguments"])
                _answer(messages, "").setdefault("tool_calls", []).append(call)
            case "compaction" if summary := unsealed(item["encrypted_content"]):
                messages.append({"role": "user", "content": f"{_SUMMARY}\n\n{summary}"})
            case "reasoning" if text := _text(item["content"]):
                _answer(messages, "content", "tool_calls", "reasoning_content")["reasoning_content"] = text
    return messages


def images_of(items: Iterable[PlainItem], path: str) -> tuple[Image, ...]:
    """Return the images of all items, in order. `path`: the name of the list in the body."""
    return tuple(
        image_of(part["image_url"] or "", f"{path}[{place}].{name}[{at}]")
        for place, item in enumerate(items)
        for name in ("content", "output")
        if isinstance(item.get(name), list)
        for at, part in enumerate(item[name])
        if part["type"] == "input_image"
    )


def with_instructions(instructions: str | None, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the instructions and the leading system messages: many templates allow only one, at the start."""
    start = next((at for at, one in enumerate(messages) if one["role"] not in ("system", "developer")), len(messages))
    texts = [instructions, *(message["content"] for message in messages[:start])]
    told = "\n\n".join(text for text in texts if text)
    rest = list(messages[start:])
    if not told:
        return rest
    roles = {message["role"] for message in messages[:start]}
    role = "developer" if roles == {"developer"} and not instructions else "system"
    return [{"role": role, "content": told}, *rest]


def full_name(call: PlainItem) -> str:
    """Return the name by which the model knows the function of a call."""
    namespace: str | None = call.get("namespace")
    return flat_name(namespace, call["name"]) if namespace else call["name"]


def flat_name(namespace: str, name: str) -> str:
    return f"{namespace}__{name}"


def _answer(messages: list[dict[str, Any]], *unless: str) -> dict[str, Any]:
    """Return the assistant message at the end. Begin a new one if the last message has one of the fields `unless`."""
    last = messages[-1] if messages else {"role": ""}
    if last["role"] != "assistant" or any(last.get(name) for name in unless):
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(parts: Iterable[dict[str, Any]]) -> str:
    return "\n".join(_texts(parts))


def _texts(parts: Iterable[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        if part["type"] != "input_image":
            yield part["refusal"] if part["type"] == "refusal" else part["text"]

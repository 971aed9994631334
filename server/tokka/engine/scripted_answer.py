"""The scripted engine's answers: its fixed text, a tool call, or reasoning before either. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokka.core import ChatPrompt, Constraint, GenerateRequest, Prompt, Tools
from tokka.engine.reading.forms import Form
from tokka.engine.reading.thinking import ThoughtMarks
from tokka.engine.schema_example import NoExampleError, example
from tokka.errors import UnsupportedParameter

THOUGHT_MARKS = ThoughtMarks("<think>", "</think>", begins=False)
REASONING = "The scripted engine reasons before it answers."


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """The scripted engine's text for any request."""

    answer: str
    # The format of tool calls with `tool_choice: auto`.
    form: Form
    # Call tools, and write JSON that matches a schema.
    calls: bool
    # Reason before the answer to a chat.
    reasons: bool

    def text(self, request: GenerateRequest) -> bytes:
        """Return the text of every choice. Raises UnsupportedParameter for a constraint that it cannot match."""
        prompt, constraint = request.prompts[0], request.sampling.constraint
        reasoning = ""
        if self.reasons and isinstance(prompt, ChatPrompt):
            reasoning = f"{THOUGHT_MARKS.start}{REASONING}{THOUGHT_MARKS.end}"
        return (reasoning + (self._call(prompt) or self._within(constraint))).encode()

    def _call(self, prompt: Prompt) -> str | None:
        """Return the tool call in the form that the request makes the model write; None if it makes none."""
        if not self.calls or not isinstance(prompt, ChatPrompt) or (tools := prompt.tools) is None:
            return None
        name, arguments = _first_call(tools)
        match tools.choice:
            case "named":
                return json.dumps(arguments)
            case "required":
                return json.dumps([{"name": name, "parameters": arguments}])
        if _has_called(prompt.messages):
            return None
        opener, closer = "".join(self.form.openers[:1]), "".join(self.form.closers[:1])
        return f"{opener}{json.dumps({'name': name, 'arguments': arguments})}{closer}"

    def _within(self, constraint: Constraint | None) -> str:
        if constraint is None or constraint.is_optional:
            return self.answer
        if constraint.kind == "choice":
            choices: list[str] = json.loads(constraint.text)
            return choices[0]
        if constraint.kind == "json" and self.calls:
            return json.dumps(_example(json.loads(constraint.text)))
        if constraint.kind == "calls" and self.calls:
            return json.dumps(_example(json.loads(constraint.text)["answer"]))
        reason = f"the scripted engine has no {constraint.kind} constraints"
        if constraint.kind in ("json", "calls"):
            reason = "the scripted engine matches a schema only with --engine-arg tool_calls=true"
        raise UnsupportedParameter(f"'{constraint.param}' needs a real engine; {reason}.", param=constraint.param)


def _first_call(tools: Tools) -> tuple[str, Any]:
    """Return the name and the arguments of a call: of the named function, or of the first that may be called."""
    names = {tools.name} if tools.name else tools.names
    function = next(tool["function"] for tool in tools.functions if tool["function"]["name"] in names)
    return function["name"], _example({"type": "object", **(function.get("parameters") or {})})


def _has_called(messages: Sequence[dict[str, Any]]) -> bool:
    """Return whether the model has called a tool since it last answered with text alone.

    Not since the last user message: agents send remarks of their own beside a tool's result.
    """
    for message in reversed(messages):
        if message["role"] == "tool" or message.get("tool_calls"):
            return True
        if message["role"] == "assistant":
            return False
    return False


def _example(schema: Any) -> Any:
    try:
        return example(schema)
    except NoExampleError:
        return {}

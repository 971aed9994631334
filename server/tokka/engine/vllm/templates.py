"""What a chat template tells of its model: whether it knows tools, and how its model calls them."""

from __future__ import annotations

from typing import Any

# What is found first decides: the marks of a form, and the parser that reads it.
_MARKS = (
    (("<function=",), "qwen3_coder"),
    (("<｜tool▁call▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁call▁begin｜>function",), "deepseek_v3"),
    (("<｜tool▁call▁begin｜>",), "deepseek_v31"),
    (("<|channel|>", "functions."), "openai"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<tool_call>",), "hermes"),
    (("<|python_start|>",), "llama4_pythonic"),
    (("<|python_tag|>",), "llama3_json"),
    (("<|start_header_id|>", '"parameters"'), "llama3_json"),
)


def reads(template: Any, variable: str) -> bool:
    """Whether the template asks for a variable that it is given."""
    from jinja2 import TemplateError
    from jinja2.meta import find_undeclared_variables
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if isinstance(template, dict):
        # Of several by name transformers takes this one where there are tools.
        template = template.get("tool_use", template.get("default"))
    if not isinstance(template, str):
        return template is not None
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        # A block that only marks what the model itself wrote changes nothing here.
        parsed = environment.parse(template.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
        return variable in find_undeclared_variables(parsed)
    except TemplateError:
        return variable in template


def knows_tools(template: Any) -> bool:
    """Whether the template writes the tools it is given into the prompt."""
    return reads(template, "tools")


def parser_of(template: Any) -> str | None:
    """Return the name of the parser for the calls the template shows its model; None if they are not known."""
    text = str(template)
    return next((parser for marks, parser in _MARKS if all(mark in text for mark in marks)), None)

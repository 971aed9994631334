"""Reads a chat template: whether it supports tools, its tool-call format, and the strings it compares or removes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

# Texts that identify a tool-call format, and the parser for it. The first match decides.
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
    """Return whether the template reads a variable that the caller sets."""
    from jinja2 import TemplateError
    from jinja2.meta import find_undeclared_variables
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if isinstance(template, dict):
        # Of several named templates, transformers picks this one if there are tools.
        template = template.get("tool_use", template.get("default"))
    if not isinstance(template, str):
        return template is not None
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        # This block only marks the model's own text, and plain Jinja does not know it.
        parsed = environment.parse(template.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
        return variable in find_undeclared_variables(parsed)
    except TemplateError:
        return variable in template


def knows_tools(template: Any) -> bool:
    """Return whether the template writes given tools into the prompt."""
    return reads(template, "tools")


def parser_of(template: Any) -> str | None:
    """Return the name of the parser for the template's tool-call format; None if the format is unknown."""
    text = str(template)
    return next((parser for marks, parser in _MARKS if all(mark in text for mark in marks)), None)


# The use of a string in a template. The expressions below match the code around a string that is compared with texts or
# removed from them. Any other string may be written.
_Use = Literal["code", "written", "compared", "removed"]
_COMPARED_BEFORE = re.compile(r"(?:[=!]=|\bin|[.|]\s*(?:startswith|endswith|count|r?find|r?index)\s*\()\s*$")
_COMPARED_BEHIND = re.compile(r"^\s*(?:[=!]=|(?:not\s+)?in\b)")
_REMOVED_BEFORE = re.compile(r"[.|]\s*(?:replace|r?split|r?partition|removeprefix|removesuffix)\s*\(\s*$")
_CODE_CHARS = 80


def removed_by(template: Any) -> frozenset[str]:
    """Return the strings that a template may remove from texts."""
    from jinja2 import TemplateError

    sources = template.values() if isinstance(template, dict) else [template]
    try:
        parts = [part for source in sources if isinstance(source, str) for part in _parts(source)]
    except TemplateError:
        # An invalid template writes nothing.
        return frozenset()
    return frozenset(text[1:-1] for text, use in parts if use == "removed")


def with_written(source: str, change: Callable[[str], str]) -> str:
    """Return the template with `change` applied to all text that it writes, not to strings that it compares."""
    return "".join(change(text) if use == "written" else text for text, use in _parts(source))


def _parts(source: str) -> Iterator[tuple[str, _Use]]:
    """Yield the parts of a template's source, each with its use."""
    from jinja2 import Environment

    tokens = [(kind, text) for _, kind, text in Environment(keep_trailing_newline=True).lex(source)]  # noqa: S701
    code = ""
    for place, (kind, text) in enumerate(tokens):
        if kind == "data":
            yield text, "written"
            code = ""
            continue
        use: _Use = "code"
        if kind == "string":
            behind = "".join(text for _, text in tokens[place + 1 : place + 5])
            use = "removed" if _REMOVED_BEFORE.search(code) else "written"
            if _COMPARED_BEFORE.search(code) or _COMPARED_BEHIND.match(behind):
                use = "compared"
        yield text, use
        code = (code + text)[-_CODE_CHARS:]

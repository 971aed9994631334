"""What a chat template tells of its model: whether it knows tools, how its model calls them, what it looks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

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


# What a string of a template is for. It is compared with texts, or taken out of them, if this stands around it;
# anything else may be written.
_Use = Literal["code", "written", "compared", "removed"]
_COMPARED_BEFORE = re.compile(r"(?:[=!]=|\bin|[.|]\s*(?:startswith|endswith|count|r?find|r?index)\s*\()\s*$")
_COMPARED_BEHIND = re.compile(r"^\s*(?:[=!]=|(?:not\s+)?in\b)")
_REMOVED_BEFORE = re.compile(r"[.|]\s*(?:replace|r?split|r?partition|removeprefix|removesuffix)\s*\(\s*$")
_CODE_CHARS = 80


def removed_by(template: Any) -> frozenset[str]:
    """Return the strings that a template may take out of texts."""
    from jinja2 import TemplateError

    sources = template.values() if isinstance(template, dict) else [template]
    try:
        parts = [part for source in sources if isinstance(source, str) for part in _parts(source)]
    except TemplateError:
        # It writes nothing at all.
        return frozenset()
    return frozenset(text[1:-1] for text, use in parts if use == "removed")


def with_written(source: str, change: Callable[[str], str]) -> str:
    """Return a template in which all text is changed that it writes; what it compares with stays as it is."""
    return "".join(change(text) if use == "written" else text for text, use in _parts(source))


def _parts(source: str) -> Iterator[tuple[str, _Use]]:
    """Yield the parts of a template's text, each with its use."""
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

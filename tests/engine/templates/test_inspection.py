"""Facts read from a chat template: whether it supports tools, and which parser reads its model's tool calls."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.engine.templates.inspection import knows_tools, parser_of

PLAIN = "{% for message in messages %}{{ message.role }}: {{ message['content'] }}\n{% endfor %}"
WITH = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"


@pytest.mark.parametrize(
    ("template", "knows"),
    [
        (None, False),
        (PLAIN, False),
        (PLAIN + "{# tools #}", False),
        (PLAIN + "I have no tools.", False),
        ("{% set tools = [] %}" + WITH, False),
        (WITH + PLAIN, True),
        ("{% if tools is defined and tools %}x{% endif %}", True),
        ("{% generation %}{{ tools }}{% endgeneration %}{% break %}", True),
        ("{% unknown_tag %}{{ tools }}", True),
        ({"default": PLAIN, "tool_use": WITH + PLAIN}, True),
        ({"default": WITH + PLAIN, "rag": PLAIN}, True),
        ({"default": PLAIN, "rag": WITH + PLAIN}, False),
    ],
)
def test_a_template_knows_tools_if_it_reads_them(template: Any, knows: bool) -> None:
    assert knows_tools(template) == knows


@pytest.mark.parametrize(
    ("marks", "parser"),
    [
        ("<tool_call>\n{{ tool }}\n</tool_call>", "hermes"),
        ("<tool_call>\n<function=f>\n</function>\n</tool_call>", "qwen3_coder"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral"),
        ("<|start_header_id|> <|python_tag|>", "llama3_json"),
        ('<|start_header_id|> {"name": f, "parameters": p}', "llama3_json"),
        ("<|python_start|>", "llama4_pythonic"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + type + '<｜tool▁sep｜>' + name + '\\n```json", "deepseek_v3"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>", "deepseek_v3"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ name + '<｜tool▁sep｜>", "deepseek_v31"),
        ("<|channel|>commentary to=functions.", "openai"),
        ("nothing known", None),
    ],
)
def test_the_marks_of_a_form_name_its_parser(marks: str, parser: str | None) -> None:
    assert parser_of(marks) == parser

"""Reasoning effort and verbosity: variables of the chat template, ignored if it does not read them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tokka.core import ChatPrompt
from tokka.engine.templates.inspection import reads
from tokka.engine.vllm.render import Renderer

PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
# As in gpt-oss's template.
WITH_DEFAULT = (
    "{% macro head() %}{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{{ reasoning_effort }}{% endmacro %}{{ head() }}" + PLAIN
)


class Tokenizer:
    """Records the variables that a template gets."""

    bos_token_id = eos_token_id = 0

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}

    def apply_chat_template(self, _messages: Any, **given: Any) -> str:
        self.given = given
        return "a"

    def __call__(self, _text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [0]}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, False),
        ("{# reasoning_effort #}" + PLAIN, False),
        ("reasoning_effort", False),
        ("{{ reasoning_effort }}" + PLAIN, True),
        (WITH_DEFAULT, True),
    ],
)
def test_a_template_reads_it_or_not(template: str, expected: bool) -> None:
    assert reads(template, "reasoning_effort") == expected


def rendered(template: str, **fields: Any) -> dict[str, Any]:
    tokenizer = Tokenizer()
    renderer = Renderer(tokenizer, template, 100, 1)
    prompt = ChatPrompt(({"role": "user", "content": "Hi"},), **fields)
    try:
        asyncio.run(renderer.token_ids(prompt, "tenant"))
    finally:
        renderer.close()
    return tokenizer.given


def test_a_template_that_reads_it_gets_it() -> None:
    given = rendered(WITH_DEFAULT, reasoning_effort="high", template_kwargs={"x": 1})
    assert (given["reasoning_effort"], given["x"]) == ("high", 1)
    assert "reasoning_effort" not in rendered(WITH_DEFAULT)


def test_effort_is_ignored_when_the_template_has_no_switch() -> None:
    given = rendered(PLAIN, reasoning_effort="low", verbosity="low")
    assert given.keys().isdisjoint({"reasoning_effort", "enable_thinking", "thinking", "verbosity"})


# As in the templates of Qwen 3 and of DeepSeek V3.1.
QWEN = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}" + PLAIN
DEEPSEEK = "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}" + PLAIN


@pytest.mark.parametrize(("template", "name"), [(QWEN, "enable_thinking"), (DEEPSEEK, "thinking")])
def test_effort_turns_thinking_on_or_off(template: str, name: str) -> None:
    for effort in ("minimal", "low", "medium", "high"):
        assert rendered(template, reasoning_effort=effort)[name] is True
    assert rendered(template, reasoning_effort="none")[name] is False
    assert name not in rendered(template)
    assert rendered(template, reasoning_effort="none", template_kwargs={name: True})[name] is True


def test_effort_alone_is_set_when_the_template_reads_both() -> None:
    given = rendered(WITH_DEFAULT + QWEN, reasoning_effort="none")
    assert (given["reasoning_effort"], "enable_thinking" in given) == ("none", False)


def test_verbosity_is_a_variable_of_the_template() -> None:
    assert rendered("{{ verbosity }}" + PLAIN, verbosity="high")["verbosity"] == "high"

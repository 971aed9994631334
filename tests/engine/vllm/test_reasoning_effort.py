"""How much a model is to think is a variable of its template; of one that reads none nothing is ignored."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tokka.core import ChatPrompt
from tokka.engine.vllm.render import Renderer
from tokka.engine.vllm.templates import reads
from tokka.errors import UnsupportedParameter

PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
# As gpt-oss has it.
WITH_DEFAULT = (
    "{% macro head() %}{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{{ reasoning_effort }}{% endmacro %}{{ head() }}" + PLAIN
)


class Tokenizer:
    """Writes down what a template is given."""

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


def test_with_a_template_that_does_not_it_is_refused() -> None:
    with pytest.raises(UnsupportedParameter, match="chat template does not read it") as caught:
        rendered(PLAIN, reasoning_effort="low")
    assert caught.value.param == "reasoning_effort"
    assert "reasoning_effort" not in rendered(PLAIN)

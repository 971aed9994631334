"""Strict functions with tool choice `auto`: text is free, and tool calls in it must match their schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from tests.engine.tokenizer import EOS, byte_tokenizer
from tokka.engine.grammars.compiler import Compiler
from tokka.engine.grammars.limits import matcher_of

SCHEMAS = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
        "$defs": {"city": {"enum": ["Oulu", "Åbo"]}},
    },
    "now": {"type": "object"},
}
OPENER, CLOSER = EOS + 1, EOS + 2


def follows(text: str, *, marks_are_tokens: bool, answer: Any = None, parallel: bool = True) -> bool:
    """Return whether a model may write this text and end there."""
    line = byte_tokenizer()
    tokenizer: dict[str, Any] = json.loads(line["tokenizer"])
    if marks_are_tokens:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tokenizer["added_tokens"] += [
            {"id": OPENER, "content": "<tool_call>", **flags},
            {"id": CLOSER, "content": "</tool_call>", **flags},
        ]
    raw = json.dumps(tokenizer)
    held = json.dumps({"functions": SCHEMAS, "answer": answer, "parallel": parallel})
    grammar = Compiler(raw, CLOSER + 1, EOS).grammar("calls", held)
    ids: list[int] = []
    for place, part in enumerate(text.split("</tool_call>")):
        ids += [CLOSER] if place and marks_are_tokens else [*b"</tool_call>"] if place else []
        for number, piece in enumerate(part.split("<tool_call>")):
            ids += [OPENER] if number and marks_are_tokens else [*b"<tool_call>"] if number else []
            ids += piece.encode()
    matcher = matcher_of(LLTokenizer(raw, n_vocab=CLOSER + 1, eos_token=EOS), grammar)
    assert not matcher.is_error(), matcher.get_error()
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


RIGHT = call("get_weather", '{"city": "Åbo", "days": 3}')


@pytest.mark.parametrize("marks_are_tokens", [False, True])
@pytest.mark.parametrize(
    ("text", "may_be"),
    [
        ("Just <b>text</b> {ä🦌}\n\n", True),
        ("", True),
        (RIGHT, True),
        ("Let me see.\n" + RIGHT + "\n" + call("now", '{"a": [1]}') + " Done.", True),
        (call("get_weather", '{"city": "Rome", "days": 3}'), False),
        (call("get_weather", '{"city": "Oulu"}'), False),
        (call("unknown", "{}"), False),
        ("<tool_call>text", False),
        (RIGHT.removesuffix("</tool_call>"), False),
    ],
)
def test_a_call_is_held_to_its_schema_and_text_to_nothing(text: str, may_be: bool, marks_are_tokens: bool) -> None:
    assert follows(text, marks_are_tokens=marks_are_tokens) == may_be


ANSWER = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}


@pytest.mark.parametrize("marks_are_tokens", [False, True])
@pytest.mark.parametrize(
    ("text", "may_be"),
    [
        ('{"warm":true}', True),
        (RIGHT, True),
        (RIGHT + "\n" + call("now", "{}"), True),
        ('{"warm":1}', False),
        ("It is warm.", False),
        ("Let me see.\n" + RIGHT, False),
        (RIGHT + '{"warm":true}', False),
        (call("get_weather", '{"city": "Rome", "days": 3}'), False),
    ],
)
def test_beside_a_response_format_there_are_calls_or_that(text: str, may_be: bool, marks_are_tokens: bool) -> None:
    assert follows(text, marks_are_tokens=marks_are_tokens, answer=ANSWER) == may_be


@pytest.mark.parametrize("marks_are_tokens", [False, True])
@pytest.mark.parametrize("answer", [None, ANSWER])
def test_where_one_call_is_all_that_may_be_it_is_the_end(answer: Any, marks_are_tokens: bool) -> None:
    held: Any = {"marks_are_tokens": marks_are_tokens, "answer": answer, "parallel": False}
    assert follows(RIGHT, **held)
    assert follows('{"warm":true}', **held)
    assert follows("Let me see.\n" + RIGHT, **held) == (answer is None)
    assert not follows(RIGHT + "\n" + RIGHT, **held)
    assert not follows(RIGHT + " Done.", **held)

"""Structural tags: text is free, and a trigger must be followed by a tag with content that matches its schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from tests.engine.tokenizer import EOS, byte_tokenizer
from tokka.engine.grammars.compiler import Compiler
from tokka.engine.grammars.limits import matchers_of

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oulu", "Åbo"]}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
NOW = {"type": "object", "properties": {}, "additionalProperties": False}
TAGS = [
    {"trigger": "<function=", "begin": "<function=weather>", "schema": WEATHER, "end": "</function>"},
    {"trigger": "<function=", "begin": "<function=now>", "schema": NOW, "end": "</function>"},
    {"trigger": "[[", "begin": "[[", "schema": NOW, "end": ""},
]
CALL = EOS + 1
MARKED = [{"trigger": "<tool_call>", "begin": "<tool_call>\n", "schema": WEATHER, "end": "\n<tool_call>"}]


def follows(text: str, tags: list[dict[str, Any]], *, mark_is_token: bool = False) -> bool:
    """Return whether a model may write this text and end there."""
    line = byte_tokenizer()
    tokenizer: dict[str, Any] = json.loads(line["tokenizer"])
    if mark_is_token:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tokenizer["added_tokens"].append({"id": CALL, "content": "<tool_call>", **flags})
    raw = json.dumps(tokenizer)
    grammar = Compiler(raw, CALL + 1, EOS).grammar("tags", json.dumps(tags))
    ids: list[int] = []
    for place, part in enumerate(text.split("<tool_call>")):
        ids += [CALL] if place and mark_is_token else [*b"<tool_call>"] if place else []
        ids += part.encode()
    matchers = matchers_of(LLTokenizer(raw, n_vocab=CALL + 1, eos_token=EOS), grammar)
    return all(
        matcher is None or (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())
        for matcher in matchers
    )


@pytest.mark.parametrize(
    ("text", "may_be"),
    [
        ("", True),
        ("Just <b>text</b> [1] {ä🦌}\n\n", True),
        ('Let me see. <function=weather>{"city": "Åbo"}</function>', True),
        ('<function=weather>{"city": "Oulu", "days": 3}</function> and <function=now>{}</function> Done.', True),
        ("[[{}", True),
        ('<function=weather>{"city": "Rome"}</function>', False),
        ('<function=weather>{"city": "Oulu"}', False),
        ("<function=other>{}</function>", False),
        ('<function=now>{"a": 1}</function>', False),
        ("[[text", False),
        ('<function=weather>{"city": "Oulu", "days": 99999999999999999999}</function>', False),
    ],
)
def test_tag_is_held_to_its_schema_and_text_to_nothing(text: str, may_be: bool) -> None:
    assert follows(text, TAGS) == may_be


@pytest.mark.parametrize("mark_is_token", [False, True])
def test_tag_may_begin_and_end_with_a_token_of_its_own(mark_is_token: bool) -> None:
    right = '<tool_call>\n{"city": "Oulu"}\n<tool_call>'
    assert follows(f"Text {right} text", MARKED, mark_is_token=mark_is_token)
    assert not follows("<tool_call>\n{}\n<tool_call>", MARKED, mark_is_token=mark_is_token)


def test_tag_may_be_json_around_its_content() -> None:
    tags = [{"trigger": '{"name":', "begin": '{"name": "f", "parameters": ', "schema": WEATHER, "end": "}"}]
    assert follows('{"name": "f", "parameters": {"city": "Oulu"}} Done.', tags)
    assert not follows('{"name": "f", "parameters": {"town": "Oulu"}} Done.', tags)


def test_tag_of_any_text_is_quoted() -> None:
    begin = 'x"\\%json {} | /.*/ \n'
    tags = [{"trigger": 'x"', "begin": begin, "schema": NOW, "end": '"'}]
    assert follows(f'a {begin}{{}}" b', tags)
    assert not follows('a x" b', tags)

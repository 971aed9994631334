"""gpt-oss's Harmony format: each part of an answer is read by its label, for every split of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.reading.read import folded, split
from tests.engine.reading.tool_texts import ONE_CALL, TOOLS
from tokka.core import Tools
from tokka.engine.reading.harmony import MARKS, HarmonyReader
from tokka.engine.reading.pieces import Thought

THINKS = "<|channel|>analysis<|message|>Hm 🦌 <b>.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"a": "}<"}<|call|>'
OTHER = "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{}<|call|>"
SAYS = "<|channel|>final<|message|>Yes.<|return|>"
CASES = [
    (THINKS + SAYS, "Hm 🦌 <b>.", [], "Yes."),
    (THINKS + CALL, "Hm 🦌 <b>.", [("now", '{"a": "}<"}')], ""),
    (CALL + OTHER, "", [("now", '{"a": "}<"}'), ("get_weather", "{}")], ""),
    ("<|channel|>commentary<|message|>First.<|end|>" + CALL, "", [("now", '{"a": "}<"}')], "First."),
    (CALL.replace("now", "mcp.read"), "", [("mcp.read", '{"a": "}<"}')], ""),
    (CALL.replace("functions.now", "python"), "", [], '{"a": "}<"}'),
    ("Just text.", "", [], "Just text."),
    ("<|channel|>fin", "", [], ""),
    ("<|channel|>analysis<|message|>Hm", "Hm", [], ""),
    (CALL[:-12], "", [("now", '{"a": "')], ""),
]


def read(text: str, cuts: list[int], tools: Tools | None = TOOLS) -> tuple[str, list[tuple[str, str]], str]:
    reader = HarmonyReader(tools)
    pieces = [piece for part in split(text, cuts) for piece in reader.feed(part)]
    pieces += reader.finish(cut_short=False)
    calls, content = folded([piece for piece in pieces if not isinstance(piece, Thought)])
    return "".join(piece.text for piece in pieces if isinstance(piece, Thought)), calls, content


@pytest.mark.parametrize(("text", "thoughts", "calls", "content"), CASES)
def test_reader_separates_reasoning_calls_and_content(
    text: str, thoughts: str, calls: list[tuple[str, str]], content: str
) -> None:
    assert read(text, []) == (thoughts, calls, content)
    assert read(text, list(range(len(text)))) == (thoughts, calls, content)


@given(
    st.lists(st.sampled_from([*MARKS, "final", "analysis", " to=functions.now", "{}", "a🦌", " ", "<|"]), max_size=12),
    st.lists(st.integers(0, 120), max_size=6),
)
def test_every_split_gives_the_same(words: list[str], cuts: list[int]) -> None:
    assert read("".join(words), cuts) == read("".join(words), [])


def test_one_call_is_made_where_no_more_may_be() -> None:
    assert read(CALL + OTHER, [], ONE_CALL) == ("", [("now", '{"a": "}<"}')], "")


def test_a_function_the_request_forbids_is_not_called() -> None:
    tools = Tools(TOOLS.functions, allowed=frozenset({"get_weather"}))
    assert read(CALL, [], tools) == ("", [], '{"a": "}<"}')


def test_without_tools_a_call_is_text() -> None:
    assert read(THINKS + CALL, [], None) == ("Hm 🦌 <b>.", [], '{"a": "}<"}')

"""Reasoning and answer are separated, for every split of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.reading.read import split
from tokka.engine.reading.thinking import ThoughtMarks, ThoughtReader

MARKED = ThoughtMarks("<think>", "</think>", begins=False)
BEGUN = ThoughtMarks("<think>", "</think>", begins=True)
CASES = [
    (MARKED, "<think>Hm.</think>Yes.", "Hm.", "Yes."),
    (MARKED, "\n<think>Hm. <b></think>\n\nYes.", "Hm. <b>", "\n\nYes."),
    (MARKED, "Yes. <think>not</think>", "", "Yes. <think>not</think>"),
    (MARKED, "<thin", "", "<thin"),
    (MARKED, "<think>Hm", "Hm", ""),
    (MARKED, "<think>Hm</thin", "Hm</thin", ""),
    (MARKED, "<think></think>", "", ""),
    (MARKED, "", "", ""),
    (BEGUN, "Hm.</think>Yes.", "Hm.", "Yes."),
    (BEGUN, "<think>Hm.</think>Yes. </think>", "Hm.", "Yes. </think>"),
    (BEGUN, "Hm", "Hm", ""),
    (BEGUN, "</think>ä🦌", "", "ä🦌"),
]


def read(thoughts: ThoughtMarks, pieces: list[str]) -> tuple[str, str]:
    reader = ThoughtReader(thoughts)
    thought = answer = ""
    for piece in pieces:
        if reader.is_over:
            answer += piece
            continue
        more, text = reader.feed(piece)
        thought, answer = thought + more, answer + text
    if not reader.is_over:
        more, text = reader.finish()
        thought, answer = thought + more, answer + text
    return thought, answer


@pytest.mark.parametrize(("thoughts", "text", "thought", "answer"), CASES)
def test_reader_separates_reasoning_and_content(thoughts: ThoughtMarks, text: str, thought: str, answer: str) -> None:
    assert read(thoughts, [text]) == (thought, answer)
    assert read(thoughts, list(text)) == (thought, answer)


_words = st.lists(st.sampled_from(["<think>", "</think>", "<", "think", "a", " ", "\n", "🦌"]), max_size=9)


@given(st.sampled_from([MARKED, BEGUN]), _words, st.lists(st.integers(0, 60), max_size=6))
def test_every_split_gives_the_same(thoughts: ThoughtMarks, words: list[str], cuts: list[int]) -> None:
    text = "".join(words)
    assert read(thoughts, split(text, cuts)) == read(thoughts, [text])


def test_thoughts_are_passed_on_as_they_come() -> None:
    reader = ThoughtReader(MARKED)
    assert [reader.feed(piece) for piece in ["<think>He", "i <", "b> </th"]] == [("He", ""), ("i ", ""), ("<b> ", "")]
    # A request that ends here must not show a piece of the marker as its answer.
    assert reader.held == ""


def test_text_held_before_reasoning_may_be_the_answer() -> None:
    reader = ThoughtReader(MARKED)
    assert reader.feed("<thi") == ("", "")
    assert reader.held == "<thi"

"""If only one tool call is allowed, a choice ends with it."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.core import ChoiceDone, Event, TextDelta, ToolCallDelta, Tools
from tokka.engine.reading.forms import FORMS
from tokka.engine.reading.readers import Readers, ReadingPlan

FUNCTIONS = tuple({"type": "function", "function": {"name": name}} for name in ("now", "get"))
CALL = '<tool_call>\n{"name": "get", "arguments": {"a": "}"}}\n</tool_call>'
HARMONY = '<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"a": "}"}<|call|>'
HERMES: dict[str, Any] = {"form": FORMS["hermes"]}


def read(text: str, *, parallel: bool, **fields: Any) -> tuple[list[Event], list[int]]:
    """Read the text one character at a time. Return the events, and the choices that were ended early."""
    ended: list[int] = []
    readers = Readers(ReadingPlan(tools=Tools(FUNCTIONS, parallel=parallel), **fields), ended.append)
    events = [event for char in text for event in readers.read(TextDelta(3, char, (1,)))]
    return [*events, *readers.read(ChoiceDone(3, "length"))], ended


def outcome(events: list[Event]) -> tuple[str, list[str]]:
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    ends: list[str] = [event.finish_reason for event in events if isinstance(event, ChoiceDone)]
    return "".join(event.arguments for event in calls), ends


@pytest.mark.parametrize(("text", "fields"), [(CALL, HERMES), (HARMONY, {"is_harmony": True})])
def test_the_choice_ends_with_its_one_call(text: str, fields: dict[str, Any]) -> None:
    events, ended = read(text + text + "and so on", parallel=False, **fields)
    assert outcome(events) == ('{"a": "}"}', ["tool_calls"])
    assert ended == [3]


def test_a_call_that_is_cut_is_no_end() -> None:
    events, ended = read(CALL[:-18], parallel=False, **HERMES)
    assert outcome(events)[1] == ["length"]
    assert not ended


def test_where_more_may_come_it_goes_on() -> None:
    events, ended = read(CALL + CALL, parallel=True, **HERMES)
    assert outcome(events) == ('{"a": "}"}' * 2, ["length"])
    assert not ended


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_text_before_a_call_comes_before_it(size: int) -> None:
    text = "Let me see. " + CALL + CALL + "Done."
    readers = Readers(ReadingPlan(tools=Tools(FUNCTIONS), **HERMES))
    steps = [text[at : at + size] for at in range(0, len(text), size)]
    events = [event for step in steps for event in readers.read(TextDelta(0, step, (1,)))]
    events += readers.read(ChoiceDone(0, "stop"))
    shown = [event for event in events if not isinstance(event, TextDelta) or event.text.strip()]
    kinds = [type(event).__name__ for event in shown]
    order = [kind for at, kind in enumerate(kinds) if kind != kinds[at - 1]]
    assert order == ["TextDelta", "ToolCallDelta", "TextDelta", "ChoiceDone"]
    assert sum(len(event.token_ids) for event in events if isinstance(event, TextDelta)) == len(steps)

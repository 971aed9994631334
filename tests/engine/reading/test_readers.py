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
    ends = [event.finish_reason for event in events if isinstance(event, ChoiceDone)]
    return "".join(event.arguments for event in calls), ends  # type: ignore[return-value]


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

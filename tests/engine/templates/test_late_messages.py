"""System messages and texts behind tool results become parts of messages that every template takes."""

from __future__ import annotations

from tokka.engine.templates.late_messages import with_text_in_tool_results, with_user_for_late_system

SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "U"}
MODEL = {"role": "assistant", "content": "A"}
RESULT = {"role": "tool", "content": "R", "tool_call_id": "c"}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_leading_system_messages_become_one() -> None:
    assert with_user_for_late_system([SYSTEM, USER, MODEL]) == [SYSTEM, USER, MODEL]
    joined = {"role": "system", "content": "S\n\nS"}
    assert with_user_for_late_system([SYSTEM, SYSTEM, USER, MODEL]) == [joined, USER, MODEL]
    assert with_user_for_late_system([SYSTEM, SYSTEM]) == [joined]


def test_late_system_message_joins_its_neighbours() -> None:
    assert with_user_for_late_system([USER, SYSTEM, MODEL]) == [user("U\n\nS"), MODEL]
    assert with_user_for_late_system([USER, MODEL, SYSTEM, USER]) == [USER, MODEL, user("S\n\nU")]
    assert with_user_for_late_system([USER, MODEL, SYSTEM, SYSTEM]) == [USER, MODEL, user("S\n\nS")]
    assert with_user_for_late_system([USER, RESULT, SYSTEM]) == [USER, RESULT, user("S")]


def test_messages_of_the_user_alone_stay_apart() -> None:
    assert with_user_for_late_system([USER, USER]) == [USER, USER]


def test_text_behind_a_tool_result_becomes_a_part_of_it() -> None:
    joined = {**RESULT, "content": "R\n\nU"}
    assert with_text_in_tool_results([USER, RESULT, USER, MODEL]) == [USER, joined, MODEL]
    assert with_text_in_tool_results([RESULT, RESULT, USER]) == [RESULT, joined]


def test_messages_are_not_changed_in_place() -> None:
    messages = [dict(USER), dict(SYSTEM), dict(RESULT), dict(USER)]
    with_user_for_late_system(messages)
    with_text_in_tool_results(messages)
    assert messages == [USER, SYSTEM, RESULT, USER]

"""Anthropic's messages in the form of chat templates: order, tool results, reasoning, documents, images."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tokka.protocol.anthropic.blocks import (
    AnthropicMessage,
    SystemText,
    images_of,
    plain_messages,
    unknown_fields,
)

MESSAGES: TypeAdapter[list[AnthropicMessage]] = TypeAdapter(list[AnthropicMessage])
SYSTEM: TypeAdapter[SystemText] = TypeAdapter(SystemText)
USE = {"type": "tool_use", "id": "t", "name": "now", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "Noon"}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}


def text(words: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **fields}


def user(*blocks: dict[str, Any] | str) -> dict[str, Any]:
    return {"role": "user", "content": blocks[0] if isinstance(blocks[0], str) else list(blocks)}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def plain(*messages: dict[str, Any], system: Any = None) -> list[dict[str, Any]]:
    checked = None if system is None else SYSTEM.validate_python(system)
    return list(plain_messages(checked, MESSAGES.validate_python(list(messages))))


def test_system_text_comes_first() -> None:
    blocks = [text("Be brief.", cache_control={"type": "ephemeral"}), text("Be kind.")]
    for system in ("Be brief.\nBe kind.", blocks):
        assert plain(user("Hei"), system=system)[0] == {"role": "system", "content": "Be brief.\nBe kind."}


def test_billing_block_is_left_out_of_the_prompt() -> None:
    blocks = [text("x-anthropic-billing-header: cc_version=2; cch=5e1a;"), text("Be brief.")]
    assert plain(user("Hei"), system=blocks)[0]["content"] == "Be brief."
    assert plain(user("Hei"), system=blocks[:1]) == [{"role": "user", "content": "Hei"}]


def test_system_message_stays_in_its_place() -> None:
    messages = [user("a"), assistant(text("b")), {"role": "system", "content": "s"}, user("c")]
    assert [message["role"] for message in plain(*messages)] == ["user", "assistant", "system", "user"]


def test_tool_results_come_before_the_text_of_the_user() -> None:
    messages = plain(user("a"), assistant(text("b"), USE), user(text("c"), RESULT, text("d")))
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": "b",
            "tool_calls": [{"id": "t", "type": "function", "function": {"name": "now", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "Noon", "tool_call_id": "t"},
        {"role": "user", "content": "c\nd"},
    ]


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"content": "Noon", "is_error": True}, "Error: Noon"),
        ({"content": "Noon", "is_error": False}, "Noon"),
        ({"content": None}, ""),
        ({"content": [text("a"), text("b")]}, "a\nb"),
        ({"content": [{"type": "tool_reference", "tool_name": "now"}]}, "now"),
        ({"content": [text("a"), PNG]}, "a"),
    ],
)
def test_tool_result_becomes_text(fields: dict[str, Any], content: str) -> None:
    assert plain(assistant(USE), user({**RESULT, **fields}))[-1]["content"] == content


def test_reasoning_comes_back_to_the_template() -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "any"}
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    messages = plain(user("a"), assistant(thinking, redacted, text("b")))
    assert messages[1] == {"role": "assistant", "content": "b", "reasoning_content": "Hm."}


def test_adjacent_messages_of_one_role_become_one() -> None:
    messages = plain(user("a"), user(text("b")), assistant(text("c")), assistant(USE), user(RESULT), user("d"))
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
    assert messages[0]["content"] == "a\nb"
    assert (messages[1]["content"], len(messages[1]["tool_calls"])) == ("c", 1)


def test_documents_and_search_results_become_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Body"}
    blocks = {"type": "content", "content": [text("Body"), text("More")]}
    documents: list[dict[str, Any]] = [
        {"type": "document", "title": "T", "context": "C", "source": source},
        {"type": "document", "source": blocks},
        {"type": "document", "source": {"type": "content", "content": "Body"}},
        {"type": "search_result", "source": "S", "title": "T", "content": [text("Body")]},
    ]
    assert plain(user(*documents))[0]["content"] == "T\nC\nBody\nBody\nMore\nBody\nT\nS\nBody"


def test_images_keep_their_place_in_the_body() -> None:
    url = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    messages = [user(text("a"), PNG), assistant(USE), user({**RESULT, "content": [url]})]
    images = images_of(MESSAGES.validate_python(messages))
    assert [image.param for image in images] == ["messages[0].content[1]", "messages[2].content[0].content[0]"]
    assert [image.problem is None for image in images] == [True, False]
    assert images[0].url == "data:image/png;base64,iVBORw0KGgo="


def test_unknown_fields_are_counted_at_every_depth() -> None:
    messages = [{**user(text("a", x=1)), "y": 1}, assistant(USE), user({**RESULT, "content": [text("b", z=1)], "w": 1})]
    assert unknown_fields(MESSAGES.validate_python(messages)) == 4
    assert unknown_fields(MESSAGES.validate_python([user(text("a", cache_control={"type": "ephemeral"}))])) == 0


turns = st.lists(
    st.sampled_from(
        [
            [user("q"), assistant(text("a"))],
            [user("q"), assistant(USE), user(RESULT, text("note")), assistant(text("a"))],
            [user("q"), assistant(USE), user(RESULT), {"role": "system", "content": "s"}, assistant(text("a"))],
            [{"role": "system", "content": "s"}, user("q"), assistant(text("a"))],
        ]
    ),
    min_size=1,
    max_size=5,
)


@given(turns)
def test_each_prompt_begins_with_the_one_before(turns: list[list[dict[str, Any]]]) -> None:
    # Otherwise, each turn of a conversation would throw away the prefix cache.
    messages = [message for turn in turns for message in turn]
    before = plain(*messages, user("q"), system="S")
    after = plain(*messages, user("q"), assistant(text("a")), user("next"), system="S")
    assert after[: len(before)] == before

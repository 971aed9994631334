"""Tool calls and reasoning over the wire: a stream adds up to the plain response, for any text of the engine."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.contract.bodies import CHAT
from tests.contract.conftest import serving
from tests.contract.tools import BODY, answers
from tests.engine.reading.tool_texts import GOOD as SAID
from tests.engine.reading.tool_texts import Said
from tests.wire import calls_of, endings, events, folded
from tokka.engine.fake import FakeOptions
from tokka.engine.reading.forms import READABLE


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def joined(chunks: list[dict[str, Any]], name: str) -> str:
    return "".join(delta.get(name) or "" for delta in deltas(chunks))


def calls(chunks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    made: list[tuple[str, str]] = []
    for delta in deltas(chunks):
        for piece in delta.get("tool_calls", ()):
            if "id" in piece:
                assert piece["type"] == "function"
                made.append((piece["function"]["name"], ""))
            name, arguments = made[piece["index"]]
            made[piece["index"]] = (name, arguments + piece["function"]["arguments"])
    return made


NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = 'Well: <tool_call>{"name": "now", "arguments": {"a": "ä 🦌"}}</tool_call>'
CALLED = '[{"name": "get_weather", "parameters": {"city": "Oulu 🦌"}}, {"name": "now", "parameters": {}}]'
# (the text of the scripted model, the fields of the request)
CHOICES: list[tuple[str, dict[str, Any]]] = [
    (CALLED, {"tool_choice": "required"}),
    (CALLED, {"tool_choice": "required", "parallel_tool_calls": False}),
    (CALLED, {"tool_choice": "required", "stop": ["Oulu", "parameters"]}),
    ('{"city": "Oulu 🦌", "days": 2}', {"tool_choice": NAMED}),
    (CALL, {"tool_choice": "auto"}),
    (CALL, {"tool_choice": "none"}),
]


@pytest.mark.parametrize("limit", [3, 11, 18, 41, 2000])
@pytest.mark.parametrize(("text", "fields"), CHOICES, ids=str)
async def test_stream_adds_up_whatever_the_tool_choice(text: str, fields: dict[str, Any], limit: int) -> None:
    plain, chunks = await answers(FakeOptions(answer=text), n=3, max_tokens=limit, **fields)
    for choice in plain["choices"]:
        said = (choice["message"]["content"] or "", calls_of(choice), choice["finish_reason"])
        assert folded(chunks, choice["index"]) == said
    assert sorted(endings(chunks)) == [(c["index"], c["finish_reason"], c["stop_reason"]) for c in plain["choices"]]
    assert plain["usage"] == chunks[-1]["usage"]


@pytest.mark.parametrize("said", [said for said in SAID if said.parser in READABLE], ids=lambda said: said.text[:30])
async def test_a_stream_of_calls_adds_up_to_the_plain_answer(said: Said) -> None:
    plain, chunks = await answers(FakeOptions(answer=said.text, calls=said.parser))
    (choice,) = plain["choices"]
    message = choice["message"]
    made = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    assert made == calls(chunks)
    assert tuple((name, json.loads(arguments)) for name, arguments in made) == said.calls
    assert (message["content"] or "") == joined(chunks, "content") == said.content
    # `content` is null only if there are tool calls and no text.
    assert (message["content"] is None) == bool(said.calls and not said.content)
    assert choice["finish_reason"] == ("tool_calls" if said.calls else "stop")
    assert plain["usage"] == chunks[-1]["usage"]


async def test_stream_sends_the_role_once_and_a_call_id_once() -> None:
    text = '<tool_call>{"name": "now", "arguments": {"a": 1}}</tool_call>'
    _, chunks = await answers(FakeOptions(answer=text))
    first, *others = deltas(chunks)
    assert first == {"role": "assistant", "content": None, "refusal": None}
    assert not any("role" in delta for delta in others)
    pieces = [piece for delta in others for piece in delta.get("tool_calls", ())]
    assert set(pieces[0]) == {"index", "id", "type", "function"}
    assert all(set(piece) == {"index", "function"} for piece in pieces[1:])
    # One piece for each token of the arguments: the server sends each token at once.
    assert len(pieces) == 1 + len('{"a": 1}')


async def test_thoughts_have_both_names_and_are_counted() -> None:
    plain, chunks = await answers(FakeOptions(answer="<think>Hm ä.</think>Yes.", thinks=True), tools=None)
    message = plain["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"], message["content"]) == ("Hm ä.", "Hm ä.", "Yes.")
    assert joined(chunks, "reasoning_content") == joined(chunks, "reasoning") == "Hm ä."
    assert joined(chunks, "content") == "Yes."
    assert plain["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("Hm ä.".encode())
    assert chunks[-1]["usage"] == plain["usage"]


async def test_without_thoughts_a_message_has_no_field_for_them() -> None:
    plain, _ = await answers(FakeOptions(answer="Yes.", thinks=True), tools=None)
    assert "reasoning" not in plain["choices"][0]["message"]


async def test_with_tool_choice_none_a_call_is_text() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    plain, chunks = await answers(FakeOptions(answer=text), tool_choice="none")
    assert plain["choices"][0]["message"]["content"] == joined(chunks, "content") == text
    assert plain["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["now", "get_weather"])
async def test_only_allowed_functions_are_called(name: str) -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": name}}]}
    plain, chunks = await answers(
        FakeOptions(answer=text), tool_choice={"type": "allowed_tools", "allowed_tools": allowed}
    )
    assert (calls(chunks), joined(chunks, "content")) == (([("now", "{}")], "") if name == "now" else ([], text))
    assert plain["choices"][0]["finish_reason"] == ("tool_calls" if name == "now" else "stop")


async def test_a_stop_string_inside_a_call_ends_it_there() -> None:
    text = '<tool_call>{"name": "now", "arguments": {"a": "b STOP c"}}</tool_call>'
    plain, chunks = await answers(FakeOptions(answer=text), stop=["STOP"])
    assert calls(chunks) == [("now", '{"a": "b ')]
    assert plain["choices"][0]["stop_reason"] == "STOP"


async def test_answer_includes_held_back_text_when_its_deadline_passes() -> None:
    options = FakeOptions(answer="Wait <tool_", token_delay_s=0.01)
    plain, _ = await answers(options, ignore_eos=True, stop=["never"], timeout=1)
    choice = plain["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "timeout")
    assert choice["message"]["content"].startswith("Wait <tool_")


async def test_padding_hides_the_size_of_calls_and_thoughts() -> None:
    text = '<think>Hm.</think><tool_call>{"name": "now", "arguments": {}}</tool_call>'
    async with serving(FakeOptions(answer=text, thinks=True)) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tokka") as client:
            body = {**BODY, "stream": True, "stream_options": {"include_obfuscation": True}}
            chunks = events(await client.post(CHAT, json=body))
    for chunk in chunks:
        (choice,) = chunk["choices"]
        if "tool_calls" in choice["delta"] or "reasoning" in choice["delta"]:
            assert chunk["obfuscation"]

"""The Responses API on the real engine: streams, demanded calls, forms, and conversations in the prefix cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.program import Program
from tests.sockets import PATH, opened
from tests.wire import post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "SmolLM2-135M-Instruct"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oulu", "Turku"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
# Long against a block of the prefix cache: only whole blocks are found again.
LONG = " ".join(f"Rule {number}: answer in few words." for number in range(300))


@pytest.fixture(scope="module")
def client(smollm2: Program) -> Iterator[httpx.Client]:
    with smollm2.client() as client:
        yield client


def create(client: httpx.Client, given: Any, **fields: Any) -> dict[str, Any]:
    return post(client, PATH, {"model": MODEL, "input": given, "max_output_tokens": 8, "temperature": 0, **fields})


def text_of(response: dict[str, Any]) -> str:
    text: str = response["output"][-1]["content"][0]["text"]
    return text


def test_stream_adds_up_to_the_plain_response(client: httpx.Client) -> None:
    plain = create(client, "What is the capital of Finland?", max_output_tokens=24)
    body = {"model": MODEL, "input": "What is the capital of Finland?", "max_output_tokens": 24, "temperature": 0}
    lines = client.post(PATH, json={**body, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.partition("data: ")[2]) for line in lines[:-2]]
    pieces = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(pieces) == text_of(plain) == text_of(events[-1]["response"])
    tokens = [response["usage"]["output_tokens"] for response in (plain, events[-1]["response"])]
    assert tokens[0] == tokens[1] > 0


def test_second_turn_reads_its_prompt_from_the_cache(client: httpx.Client) -> None:
    first = create(client, LONG)
    assert client.get(f"{PATH}/{first['id']}").json() == first
    second = create(client, "And in fewer words?", previous_response_id=first["id"])
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= 0.95 * first["usage"]["input_tokens"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]


def test_turns_over_a_websocket_read_from_the_cache(smollm2: Program) -> None:
    fields: dict[str, Any] = {"max_output_tokens": 8, "temperature": 0}
    with opened(smollm2, None) as socket:
        first = socket.turn(LONG.replace("Rule", "Law"), **fields)
        second = socket.turn("And in fewer words?", previous_response_id=first["id"], **fields)
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= 0.95 * first["usage"]["input_tokens"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_demanded_function_is_called_and_answered(client: httpx.Client, choice: Any) -> None:
    fields = {"tools": [TOOL], "tool_choice": choice, "max_output_tokens": 100, "parallel_tool_calls": False}
    called = create(client, "Weather in Oulu?", **fields)
    (call,) = [item for item in called["output"] if item["type"] == "function_call"]
    assert (call["name"], json.loads(call["arguments"])["city"] in ("Oulu", "Turku")) == ("get_weather", True)
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Snow."}
    after = create(client, [result], tools=[TOOL], tool_choice="none", previous_response_id=called["id"])
    assert text_of(after)


def test_text_matches_the_schema(client: httpx.Client) -> None:
    form = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}}
    answer = create(client, "Name a city.", text=form, max_output_tokens=100)
    assert json.loads(text_of(answer))["city"] in ("Oulu", "Turku")

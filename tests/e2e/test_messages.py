"""Anthropic's API on the real engine: the prefix cache survives each turn, demanded tools, formats, limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.program import Program
from tests.wire import post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
MODEL = "SmolLM2-135M-Instruct"
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oulu", "Turku"]}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "Of a city.", "input_schema": SCHEMA}
NAMED = {"type": "tool", "name": "get_weather"}
# Long against a block of the prefix cache: only whole blocks are found again.
LONG = " ".join(f"Rule {number}: answer in few words." for number in range(300))


@pytest.fixture(scope="module")
def client(smollm2: Program) -> Iterator[httpx.Client]:
    with smollm2.client() as client:
        yield client


def message(client: httpx.Client, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0, **fields}
    return post(client, MESSAGES, body)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def prompt_tokens(answer: dict[str, Any]) -> int:
    usage = answer["usage"]
    tokens: int = usage["input_tokens"] + usage["cache_read_input_tokens"]
    return tokens


def test_prefix_cache_survives_a_turn_with_system_messages(client: httpx.Client) -> None:
    note = {"role": "system", "content": "The user has opened a file."}
    turns = [
        user("What is the capital of Finland?"),
        {"role": "assistant", "content": "Helsinki."},
        note,
        user("Sure?"),
    ]
    first = message(client, *turns, system=LONG)
    turns += [{"role": "assistant", "content": first["content"]}, note, user("And of Sweden?")]
    second = message(client, *turns, system=LONG)
    assert second["usage"]["cache_read_input_tokens"] >= 0.95 * prompt_tokens(first)
    assert prompt_tokens(second) > prompt_tokens(first)


def test_count_tokens_equals_the_usage(client: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [user("Hei")], "system": "Be brief.", "tools": [TOOL]}
    counted = post(client, COUNT, body)
    assert counted == {"input_tokens": prompt_tokens(message(client, **body))}


@pytest.mark.parametrize("choice", [{"type": "any", "disable_parallel_tool_use": True}, NAMED])
def test_demanded_tool_is_called_with_valid_input(client: httpx.Client, choice: dict[str, Any]) -> None:
    answer = message(client, user("Weather in Oulu?"), tools=[TOOL], tool_choice=choice, max_tokens=100)
    (use,) = answer["content"]
    assert (use["name"], use["input"]["city"] in ("Oulu", "Turku")) == ("get_weather", True)
    assert answer["stop_reason"] == "tool_use"


def test_text_matches_the_schema(client: httpx.Client) -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = message(client, user("Name a city."), output_config=form, max_tokens=100)
    assert json.loads(answer["content"][0]["text"])["city"] in ("Oulu", "Turku")


def test_limits_are_clamped_and_told(client: httpx.Client) -> None:
    answer = message(client, user("Say yes."), max_tokens=32_000, stop_sequences=["."])
    assert answer["stop_reason"] in ("stop_sequence", "end_turn")
    refused = client.post(MESSAGES, json={"model": MODEL, "max_tokens": 8, "messages": [user("word " * 9000)]})
    assert refused.status_code == 400
    assert "prompt is too long: " in refused.json()["error"]["message"]

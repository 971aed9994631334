"""The anthropic package, in this process, and llm-comply against `tokka serve` with the scripted engine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from anthropic.types import Message, MessageParam, ThinkingBlock, ToolParam, ToolUseBlock
from pydantic import BaseModel

from tests.clients.conftest import FakeServer, StartServer

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
HELLO_TOKENS = len(b"user: Hello\n")
TOOL: ToolParam = {
    "name": "get_weather",
    "description": "Of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Oulu"]}}, "required": ["city"]},
}
TIMEOUT_S = 20
# llm-comply tests reasoning only on models whose names it knows.
CLAUDE = "claude-opus-4-1"
KEY = "tk-test-key-of-the-server"


def client_of(server: FakeServer, **options: Any) -> Anthropic:
    return Anthropic(**{"base_url": server.url, "api_key": "none", "timeout": TIMEOUT_S, "max_retries": 0, **options})


@pytest.fixture
def client(server: FakeServer) -> Iterator[Anthropic]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def agent_server(start_server: StartServer) -> Iterator[FakeServer]:
    """A server that reasons, calls tools and takes images."""
    options = [word for name in ("tool_calls", "thoughts", "images") for word in ("--engine-arg", f"{name}=true")]
    with start_server(*options, "--served-model-name", CLAUDE) as server:
        yield server


@pytest.fixture
def agent(agent_server: FakeServer) -> Iterator[Anthropic]:
    with client_of(agent_server) as client:
        yield client


def test_message_has_text_usage_and_request_id(client: Anthropic, server: FakeServer) -> None:
    message = client.messages.create(model=server.model, max_tokens=32_000, messages=HELLO)
    assert [block.text for block in message.content if block.type == "text"] == [server.answer]
    assert (message.stop_reason, message.role) == ("end_turn", "assistant")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (HELLO_TOKENS, server.answer_tokens)
    assert message._request_id


def test_stream_adds_up_to_the_message(client: Anthropic, server: FakeServer) -> None:
    with client.messages.stream(model=server.model, max_tokens=1000, messages=HELLO) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(pieces) == server.answer
    assert len(pieces) > 1
    plain = client.messages.create(model=server.model, max_tokens=1000, messages=HELLO)
    assert [block.model_dump(exclude={"parsed_output"}) for block in message.content] == [
        block.model_dump() for block in plain.content
    ]
    assert message.usage == plain.usage


def test_raw_stream_has_the_events_in_order(client: Anthropic, server: FakeServer) -> None:
    events = list(client.messages.create(model=server.model, max_tokens=1000, messages=HELLO, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_stop_sequence_and_limit_end_a_message(client: Anthropic, server: FakeServer) -> None:
    stopped = client.messages.create(model=server.model, max_tokens=99, messages=HELLO, stop_sequences=["scripted"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "scripted")
    cut = client.messages.create(model=server.model, max_tokens=3, messages=HELLO)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)


def test_tokens_are_counted(client: Anthropic, server: FakeServer) -> None:
    assert client.messages.count_tokens(model=server.model, messages=HELLO).input_tokens == HELLO_TOKENS


def test_models_are_listed_and_retrieved(client: Anthropic, server: FakeServer) -> None:
    (listed,) = list(client.models.list())
    assert (listed.id, listed.type) == (server.model, "model")
    assert client.models.retrieve(server.model) == listed


async def test_async_client_streams_at_once(server: FakeServer) -> None:
    async with AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:

        async def text() -> str:
            async with client.messages.stream(model=server.model, max_tokens=1000, messages=HELLO) as stream:
                return await stream.get_final_text()

        assert await asyncio.gather(*(text() for _ in range(4))) == [server.answer] * 4


@pytest.mark.parametrize("streams", [False, True])
def test_tool_call_and_its_result_make_a_loop(agent: Anthropic, agent_server: FakeServer, streams: bool) -> None:
    turns = list(HELLO)
    fields: dict[str, Any] = {"model": agent_server.model, "max_tokens": 1000, "tools": [TOOL]}

    def message() -> Message:
        if not streams:
            plain: Message = agent.messages.create(messages=turns, **fields)
            return plain
        with agent.messages.stream(messages=turns, **fields) as stream:
            return stream.get_final_message()

    called = message()
    thinking, use = called.content
    assert isinstance(thinking, ThinkingBlock)
    assert thinking.signature
    assert isinstance(use, ToolUseBlock)
    assert (use.name, use.input, called.stop_reason) == ("get_weather", {"city": "Oulu"}, "tool_use")
    # The blocks go back as they came.
    turns.append({"role": "assistant", "content": called.content})
    turns.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Snow"}]})
    ended = message()
    assert [block.type for block in ended.content] == ["thinking", "text"]
    assert ended.stop_reason == "end_turn"


def test_tool_runner_runs_a_task_to_its_end(agent: Anthropic, agent_server: FakeServer) -> None:
    ran: list[str] = []

    @beta_tool
    def get_weather(city: str) -> str:
        """Return the weather.

        Args:
            city: A city.
        """
        ran.append(city)
        return "Snow"

    runner = agent.beta.messages.tool_runner(
        model=agent_server.model, max_tokens=1000, tools=[get_weather], messages=[{"role": "user", "content": "Hello"}]
    )
    last = runner.until_done()
    assert len(ran) == 1
    assert last.stop_reason == "end_turn"


class City(BaseModel):
    """A structured answer."""

    name: str
    people: int


def test_structured_answer_is_parsed(agent: Anthropic, agent_server: FakeServer) -> None:
    message = agent.messages.parse(model=agent_server.model, max_tokens=1000, messages=HELLO, output_format=City)
    assert isinstance(message.parsed_output, City)


def test_errors_raise_the_exceptions_of_the_package(
    client: Anthropic, server: FakeServer, start_server: StartServer
) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="other", max_tokens=1, messages=HELLO)
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert caught.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: "):
        client.messages.create(model=server.model, max_tokens=1, messages=[{"role": "user", "content": "a" * 5000}])
    with start_server("--api-key", KEY) as closed:
        with pytest.raises(anthropic.AuthenticationError), client_of(closed) as stranger:
            stranger.messages.create(model=closed.model, max_tokens=1, messages=HELLO)
        for name in ("api_key", "auth_token"):
            with client_of(closed, **{"api_key": None, name: KEY}) as known:
                assert known.messages.create(model=closed.model, max_tokens=1, messages=HELLO).usage.output_tokens == 1


def test_overloaded_server_is_retried(start_server: StartServer) -> None:
    # Each try gets 503 `overloaded_error` until the model has started.
    delay = ("--engine-arg", "start_delay_s=2")
    with start_server(*delay, wait_ready=False) as server, client_of(server, max_retries=10, timeout=60) as client:
        message = client.messages.create(model=server.model, max_tokens=1, messages=HELLO)
    assert message.usage.output_tokens == 1


def test_silent_stream_is_kept_alive_with_pings(start_server: StartServer) -> None:
    with start_server("--engine-arg", "prefill_delay_s=1", "--keep-alive-interval", "0.1") as server:
        body = {"model": server.model, "max_tokens": 1, "messages": HELLO, "stream": True}
        text = httpx.post(f"{server.url}/v1/messages", json=body, timeout=TIMEOUT_S).text
        before, _, _ = text.partition("event: content_block_start")
        assert before.count("event: ping") >= 3
        with (
            client_of(server) as client,
            client.messages.stream(model=server.model, max_tokens=9, messages=HELLO) as stream,
        ):
            assert stream.get_final_message().usage.output_tokens == 9


@pytest.mark.parametrize("model", [None, CLAUDE])
def test_llm_comply_passes(agent_server: FakeServer, model: str | None) -> None:
    address = ["-u", f"{agent_server.url}/v1", "-k", "none", "-m", model or agent_server.model]
    command = [sys.executable, "-m", "llm_comply.cli", "--format", "anthropic", "--json", *address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert report["summary"]["failed"] == 0, done.stdout
    assert report["summary"]["passed"] >= 8

"""The Responses API with the openai package, and llm-comply, against `tokka serve` with the scripted engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients.conftest import FakeServer, StartServer

FUNCTION: Any = {
    "type": "function",
    "name": "weather",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Person(BaseModel):
    name: str
    age: int = Field(ge=0, le=150)


@pytest.fixture(scope="module")
def agent_server(start_server: StartServer) -> Iterator[FakeServer]:
    with start_server("--engine-arg", "tool_calls=true", "--engine-arg", "images=true") as server:
        yield server


@pytest.fixture
def client(agent_server: FakeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{agent_server.url}/v1", api_key="none", timeout=30, max_retries=0) as client:
        yield client


def test_llm_comply_passes(agent_server: FakeServer) -> None:
    address = ["-u", f"{agent_server.url}/v1", "-k", "none", "-m", agent_server.model]
    command = [sys.executable, "-m", "llm_comply.cli", "--format", "open-responses", "--json", *address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    # The test of a reasoning summary runs only for models with names of OpenAI.
    assert (report["summary"]["passed"], report["summary"]["failed"]) == (12, 0), done.stdout


def test_response_and_stream_have_the_same_text(client: openai.OpenAI, agent_server: FakeServer) -> None:
    plain = client.responses.create(model=agent_server.model, input="Hei")
    assert plain.output_text == agent_server.answer
    with client.responses.stream(model=agent_server.model, input="Hei") as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text == agent_server.answer
    assert final.usage == plain.usage


def test_tool_loop_ends_with_an_answer(client: openai.OpenAI, agent_server: FakeServer) -> None:
    first = client.responses.create(model=agent_server.model, input="Weather?", tools=[FUNCTION])
    (call,) = first.output
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"city"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}
    stored = client.responses.create(
        model=agent_server.model, input=[result], tools=[FUNCTION], previous_response_id=first.id
    )
    items: Any = [{"role": "user", "content": "Weather?"}, *[item.to_dict() for item in first.output], result]
    sent = client.responses.create(model=agent_server.model, input=items, tools=[FUNCTION], store=False)
    assert stored.output_text == sent.output_text == agent_server.answer
    assert stored.usage == sent.usage


def test_stored_response_is_read_listed_and_deleted(client: openai.OpenAI, agent_server: FakeServer) -> None:
    items: Any = [{"role": "user", "content": f"{number}"} for number in range(5)]
    made = client.responses.create(model=agent_server.model, input=items, metadata={"a": "b"})
    assert client.responses.retrieve(made.id, include=["message.output_text.logprobs"]) == made
    listed = list(client.responses.input_items.list(made.id, limit=2, order="asc"))
    assert [item.to_dict()["content"] for item in listed] == [
        [{"type": "input_text", "text": f"{number}"}] for number in range(5)
    ]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_background_stream_is_resumed(start_server: StartServer) -> None:
    with (
        start_server("--engine-arg", "token_delay_s=0.01") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=30) as client,
    ):
        seen = []
        with client.responses.create(model=server.model, input="Hei", background=True, stream=True) as stream:
            for event in stream:
                seen.append(event)
                if len(seen) == 10:
                    break
        made = seen[0].response.id  # type: ignore[union-attr]
        rest = list(client.responses.retrieve(made, stream=True, starting_after=seen[-1].sequence_number))
        numbers = [event.sequence_number for event in [*seen, *rest]]
        assert numbers == list(range(len(numbers)))
        assert rest[-1].type == "response.completed"
        assert client.responses.retrieve(made).output_text == server.answer


def test_background_response_is_cancelled(start_server: StartServer) -> None:
    with (
        start_server("--engine-arg", "token_delay_s=0.2") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=30) as client,
    ):
        made = client.responses.create(model=server.model, input="Hei", background=True)
        assert made.status == "queued"
        assert client.responses.cancel(made.id).status == "cancelled"
        assert client.responses.retrieve(made.id).status == "cancelled"


def test_parsed_output_has_the_form_of_the_class(client: openai.OpenAI, agent_server: FakeServer) -> None:
    parsed = client.responses.parse(model=agent_server.model, input="Who?", text_format=Person).output_parsed
    assert parsed is not None
    assert 0 <= parsed.age <= 150
    with client.responses.stream(model=agent_server.model, input="Who?", text_format=Person) as stream:
        streamed = stream.get_final_response().output_parsed
    assert streamed is not None
    assert 0 <= streamed.age <= 150


def test_streamed_call_has_the_arguments_of_its_pieces(client: openai.OpenAI, agent_server: FakeServer) -> None:
    with client.responses.stream(model=agent_server.model, input="Weather?", tools=[FUNCTION]) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        (call,) = stream.get_final_response().output
    assert call.type == "function_call"
    assert "".join(pieces) == call.arguments
    assert set(json.loads(call.arguments)) == {"city"}


def test_error_names_the_field(client: openai.OpenAI, agent_server: FakeServer) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=agent_server.model, input="Hei", temperature=3)
    assert refused.value.param == "temperature"


# The package uses `websockets` as its versions before 17 want it.
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
def test_websocket_carries_a_conversation(client: openai.OpenAI, agent_server: FakeServer) -> None:
    with client.responses.connect() as connection:

        def turn(given: Any, **fields: Any) -> tuple[str, Any]:
            connection.response.create(model=agent_server.model, input=given, store=False, **fields)
            pieces = []
            for event in connection:
                if event.type == "response.output_text.delta":
                    pieces.append(event.delta)
                elif event.type in ("response.completed", "error"):
                    return "".join(pieces), event
            raise AssertionError("The connection is closed.")

        _, first = turn("Weather?", tools=[FUNCTION])
        (call,) = first.response.output
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}
        text, second = turn([result], tools=[FUNCTION], previous_response_id=first.response.id)
        assert text == second.response.output_text == agent_server.answer
        _, refused = turn("x", temperature=3)
        assert (refused.status, refused.error.code, refused.error.param) == (400, "invalid_value", "temperature")
        text, third = turn("And tomorrow?", previous_response_id=second.response.id)
        assert text == agent_server.answer
        assert third.response.usage.input_tokens > second.response.usage.input_tokens


async def test_async_websocket_carries_a_response(agent_server: FakeServer) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{agent_server.url}/v1", api_key="none", max_retries=0) as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model=agent_server.model, input="Hei")
        async for event in connection:
            if event.type == "response.completed":
                assert event.response.output_text == agent_server.answer
                break

"""The openai package, in this process, against `tokka serve`: the features that its users rely on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.clients.conftest import FakeServer, StartServer

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
HELLO_TOKENS = len(b"user: Hello\n")
TIMEOUT_S = 20


@pytest.fixture
def client(server: FakeServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: FakeServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client:
        yield client


def extra(part: BaseModel, name: str) -> Any:
    """Return a field that the package does not know. Raises KeyError if the response lacks it."""
    assert part.model_extra is not None
    return part.model_extra[name]


def test_models_are_listed_and_retrieved(client: OpenAI, server: FakeServer) -> None:
    (listed,) = client.models.list().data
    assert (listed.id, listed.object) == (server.model, "model")
    assert listed.model_extra is not None
    assert listed.model_extra["max_model_len"] == 4096
    assert client.models.retrieve(server.model) == listed


def test_chat(client: OpenAI, server: FakeServer) -> None:
    answer = client.chat.completions.create(model=server.model, messages=HELLO)
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert answer.model == server.model
    assert (choice.message.role, choice.message.content) == ("assistant", server.answer)
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == HELLO_TOKENS
    assert answer.usage.completion_tokens == server.answer_tokens
    assert answer.usage.total_tokens == HELLO_TOKENS + server.answer_tokens
    assert answer._request_id


def test_unset_fields_of_vllm_and_its_keys_are_taken(client: OpenAI, server: FakeServer) -> None:
    unset = {"prompt_logprobs": None, "use_beam_search": False, "add_special_tokens": False, "request_id": "mine"}
    answer = client.chat.completions.create(model=server.model, messages=HELLO, extra_body=unset)
    (choice,) = answer.choices
    assert (answer.id, choice.message.content) == ("chatcmpl-mine", server.answer)
    assert (extra(answer, "prompt_logprobs"), extra(choice, "token_ids")) == (None, None)
    scored = client.completions.create(model=server.model, prompt="Hello", extra_body={"prompt_logprobs": 1})
    assert len(extra(scored.choices[0], "prompt_logprobs")) == len(b"Hello")
    with pytest.raises(openai.BadRequestError, match="Beam search is not supported"):
        client.chat.completions.create(model=server.model, messages=HELLO, extra_body={"use_beam_search": True})


async def test_async_chat_answers_several_at_once(async_client: AsyncOpenAI, server: FakeServer) -> None:
    limits = range(1, 9)
    answers = await asyncio.gather(
        *(
            async_client.chat.completions.create(model=server.model, messages=HELLO, max_completion_tokens=limit)
            for limit in limits
        )
    )
    assert [answer.usage and answer.usage.completion_tokens for answer in answers] == list(limits)
    assert {answer.choices[0].finish_reason for answer in answers} == {"length"}
    assert len({answer.id for answer in answers}) == len(limits)


def test_stream_adds_up_to_the_plain_answer(client: OpenAI, server: FakeServer) -> None:
    with client.chat.completions.create(
        model=server.model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == server.answer
    assert len(pieces) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == HELLO_TOKENS + server.answer_tokens


async def test_async_stream(async_client: AsyncOpenAI, server: FakeServer) -> None:
    stream = await async_client.chat.completions.create(model=server.model, messages=HELLO, stream=True)
    async with stream:
        pieces = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == server.answer


def test_the_packages_own_stream_helper_builds_the_answer(client: OpenAI, server: FakeServer) -> None:
    with client.chat.completions.stream(model=server.model, messages=HELLO) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        answer = stream.get_final_completion()
    assert "".join(deltas) == server.answer
    assert answer.choices[0].message.content == server.answer
    assert answer.choices[0].finish_reason == "stop"


def test_first_piece_comes_before_the_last_is_made(start_server: StartServer) -> None:
    # The whole answer takes 3000 times 0.05 s; a server that buffered it would hit the read timeout.
    with (
        start_server("--engine-arg", "token_delay_s=0.05") as slow,
        OpenAI(base_url=f"{slow.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0) as client,
        client.chat.completions.create(
            model=slow.model,
            messages=HELLO,
            max_completion_tokens=3000,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream,
    ):
        chunks = iter(stream)
        assert next(chunks).choices[0].delta.role == "assistant"
        assert next(chunks).choices[0].delta.content == slow.answer[0]
    # Closing ends the stream; the fixture checks that the server then stops cleanly.


def test_raw_stream(client: OpenAI, server: FakeServer) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=server.model, messages=HELLO, max_completion_tokens=3, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_plain_answer_through_streaming_response(client: OpenAI, server: FakeServer) -> None:
    with client.chat.completions.with_streaming_response.create(model=server.model, messages=HELLO) as response:
        assert response.headers["content-type"] == "application/json"
        answer = response.parse()
    assert answer.choices[0].message.content == server.answer


def test_text_completion_stops_at_sixteen_tokens(client: OpenAI, server: FakeServer) -> None:
    answer = client.completions.create(model=server.model, prompt="Hello")
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text == server.answer.encode()[:16].decode(errors="ignore")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_text_completion_of_several_prompts_keeps_their_order(client: OpenAI, server: FakeServer) -> None:
    answer = client.completions.create(
        model=server.model, prompt=["one", "two"], max_tokens=2, n=2, echo=True, logprobs=0
    )
    start = server.answer[:2]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["one" + start] * 2 + ["two" + start] * 2
    logprobs = answer.choices[2].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["t", "w", "o", *start]
    assert logprobs.text_offset == [0, 1, 2, 3, 4]
    assert logprobs.token_logprobs is not None
    assert [logprob is None for logprob in logprobs.token_logprobs] == [True, False, False, False, False]


def test_chat_logprobs(client: OpenAI, server: FakeServer) -> None:
    answer = client.chat.completions.create(
        model=server.model, messages=HELLO, max_completion_tokens=4, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content) == server.answer.encode()[:4]
    assert [len(token.top_logprobs) for token in logprobs.content] == [2] * 4


def test_extensions_go_through_extra_body(client: OpenAI, server: FakeServer) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=HELLO,
        max_completion_tokens=2 * server.answer_tokens,
        extra_body={"ignore_eos": True, "top_k": 5, "return_token_ids": True},
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.model_extra is not None
    assert len(choice.model_extra["token_ids"]) == 2 * server.answer_tokens
    assert choice.message.content is not None
    assert choice.message.content.count(server.answer) == 2


@pytest.mark.parametrize("included", [False, True])
def test_stop_string_of_several_tokens(client: OpenAI, server: FakeServer, included: bool) -> None:
    answer = client.chat.completions.create(
        model=server.model,
        messages=HELLO,
        stop=["no such text", "scripted"],
        extra_body={"include_stop_str_in_output": included},
    )
    (choice,) = answer.choices
    assert choice.message.content == server.answer.partition("scripted")[0] + "scripted" * included
    assert choice.finish_reason == "stop"
    assert choice.model_extra is not None
    assert choice.model_extra["stop_reason"] == "scripted"


def test_unknown_model_is_not_found(client: OpenAI, server: FakeServer) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")
    assert error.type == "invalid_request_error"
    assert isinstance(error.body, dict)
    assert server.model in error.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 9}, "temperature", "invalid_value"),
        ({"max_completion_tokens": 100_000}, "messages", "context_length_exceeded"),
        ({"stop": ["ok", ""]}, "stop[1]", "invalid_value"),
        ({"messages": [*HELLO, {"role": "user", "content": 7}]}, "messages[1].content", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field", "invalid_value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_request_names_field_and_reason(
    client: OpenAI, server: FakeServer, fields: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": server.model, "messages": HELLO, **fields})
    assert (caught.value.status_code, caught.value.param, caught.value.code) == (400, param, code)


def test_a_refused_stream_is_an_error_and_not_a_stream(client: OpenAI, server: FakeServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.model, messages=HELLO, temperature=9, stream=True)
    assert caught.value.param == "temperature"


def test_error_carries_the_requests_id(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model="no-such-model", messages=HELLO, extra_headers={"x-request-id": "my-own-id-1"}
        )
    assert caught.value.request_id == "my-own-id-1"
    assert caught.value.response.headers["x-request-id"] == "my-own-id-1"


def test_endpoint_of_later_is_not_found(client: OpenAI, server: FakeServer) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.moderations.create(model=server.model, input="Hello")
    assert caught.value.code is not None


def test_keys(start_server: StartServer) -> None:
    with start_server("--api-key", "example-key-1234") as locked:
        with OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0, timeout=TIMEOUT_S) as stranger:
            with pytest.raises(openai.AuthenticationError) as caught:
                stranger.models.list()
            assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
            right = stranger.with_options(api_key="example-key-1234")
            assert right.chat.completions.create(model=locked.model, messages=HELLO).choices[0].finish_reason == "stop"
        assert httpx.get(f"{locked.url}/readyz", timeout=5).status_code == 200


def test_a_starting_model_says_when_to_come_back(start_server: StartServer) -> None:
    with (
        start_server("--engine-arg", "start_delay_s=3600", wait_ready=False) as starting,
        OpenAI(base_url=f"{starting.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=starting.model, messages=HELLO)
        assert (caught.value.status_code, caught.value.code) == (503, "model_starting")
        # The package ignores a wait above 60 s.
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    # The fixture checks that the server stops cleanly during its start.


def test_the_packages_own_retries_bridge_the_start(start_server: StartServer) -> None:
    with (
        start_server("--engine-arg", "start_delay_s=2", wait_ready=False) as starting,
        OpenAI(base_url=f"{starting.url}/v1", api_key="none", max_retries=5, timeout=TIMEOUT_S) as client,
    ):
        answer = client.chat.completions.create(model=starting.model, messages=HELLO)
        assert answer.choices[0].message.content == starting.answer

"""The embedded model through the openai package: sensible answers, plain and streamed, and a length limit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.program import Program

pytestmark = pytest.mark.engine
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of Finland?"}]


@pytest.fixture
def client(smollm2: Program) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", timeout=60, max_retries=0) as client:
        yield client


def test_the_model_is_served_under_its_name(client: OpenAI, smollm2: Program) -> None:
    # The embedding model follows.
    assert [model.id for model in client.models.list().data] == [smollm2.model, "all-MiniLM-L6-v2"]


def makes_sense(text: str) -> bool:
    return "Finland" in text or "Helsinki" in text


def test_answers_in_words(client: OpenAI, smollm2: Program) -> None:
    answer = client.chat.completions.create(
        model=smollm2.model, messages=QUESTION, temperature=0, max_completion_tokens=100
    )
    assert makes_sense(answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens < 100


def test_streams_in_words(client: OpenAI, smollm2: Program) -> None:
    with client.chat.completions.create(
        model=smollm2.model,
        messages=QUESTION,
        temperature=0,
        max_completion_tokens=100,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *chunks, last = stream
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert makes_sense("".join(pieces))
    assert len(pieces) > 1
    assert [choice.finish_reason for choice in chunks[-1].choices] == ["stop"]
    assert last.usage is not None
    assert len(pieces) <= last.usage.completion_tokens < 100


def test_low_limit_cuts_the_answer(client: OpenAI, smollm2: Program) -> None:
    answer = client.chat.completions.create(
        model=smollm2.model, messages=QUESTION, temperature=0, max_completion_tokens=4
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.choices[0].message.content

"""The embedded model, asked through the openai package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

pytestmark = pytest.mark.engine
QUESTION = [{"role": "user", "content": "What is the capital of Finland?"}]


@pytest.fixture
def client(smollm2) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", timeout=60, max_retries=0) as client:
        yield client


def test_the_model_is_served_under_its_name(client: OpenAI, smollm2) -> None:
    assert [model.id for model in client.models.list().data] == [smollm2.model]


def test_answers_in_words_and_streams_the_same(client: OpenAI, smollm2) -> None:
    plain = client.chat.completions.create(
        model=smollm2.model, messages=QUESTION, temperature=0, max_completion_tokens=100
    )
    text = plain.choices[0].message.content or ""
    assert "Finland" in text or "Helsinki" in text
    assert plain.choices[0].finish_reason == "stop"

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
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert last.usage is not None
    assert plain.usage is not None
    assert last.usage.prompt_tokens == plain.usage.prompt_tokens
    assert last.usage.completion_tokens == plain.usage.completion_tokens


def test_a_low_limit_cuts_the_same_answer(client: OpenAI, smollm2) -> None:
    whole, cut = (
        client.chat.completions.create(
            model=smollm2.model, messages=QUESTION, temperature=0, max_completion_tokens=limit
        )
        for limit in (100, 4)
    )
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 4
    text = cut.choices[0].message.content
    assert text
    assert (whole.choices[0].message.content or "").startswith(text)

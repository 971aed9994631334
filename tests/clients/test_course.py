"""The exercises that students of the LLM course run on Aitta, with the same packages, on the real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from aitta_client import APIKeyAccessTokenSource, Client, Model
from openai.types.chat import ChatCompletion

from tests.program import Program

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
ARTICLE = (
    "Helsinki is the capital of Finland. It lies on the shore of the Gulf of Finland. About 660,000 people live there, "
    "and one and a half million in the region. Its port is one of the busiest for passengers in Europe."
)


class Course:
    """A model found with Aitta's package and used with OpenAI's, as in the exercises."""

    def __init__(self, program: Program) -> None:
        client = Client(program.url, APIKeyAccessTokenSource("any-key-of-a-student", program.url))
        self.model = Model.load(program.model, client)
        self.chat = openai.OpenAI(
            api_key=client.access_token_source.get_access_token(), base_url=self.model.openai_api_url
        )

    def ask(self, *messages: tuple[str, str], **options: Any) -> ChatCompletion:
        said: list[Any] = [{"role": role, "content": content} for role, content in messages]
        answer = self.chat.chat.completions.create(model=self.model.id, messages=said, **options)
        assert isinstance(answer, ChatCompletion)
        return answer


@pytest.fixture(scope="module")
def course(smollm2: Program) -> Iterator[Course]:
    course = Course(smollm2)
    yield course
    course.chat.close()


def test_conversation_remembers_earlier_messages(course: Course) -> None:
    first = ("user", "My name is Aino.")
    said = course.ask(first, temperature=0, max_completion_tokens=40).choices[0].message.content or ""
    assert "Aino" in said
    then = course.ask(first, ("assistant", said), ("user", "What is my name?"), temperature=0, max_completion_tokens=40)
    assert "Aino" in (then.choices[0].message.content or "")


def test_several_answers_with_temperature_differ(course: Course) -> None:
    question = ("user", "Write one sentence about the sea.")
    answer = course.ask(question, n=4, temperature=1.5, top_p=0.95, max_completion_tokens=30)
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_answer_ends_with_length_at_its_limit_and_stop_without(course: Course) -> None:
    question = ("user", "What is the capital of Finland?")
    cut = course.ask(question, temperature=0, max_completion_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage and cut.usage.completion_tokens) == ("length", 3)
    assert course.ask(question, temperature=0, max_completion_tokens=200).choices[0].finish_reason == "stop"


def test_a_summary_is_shorter_than_the_text(course: Course) -> None:
    answer = course.ask(
        ("system", "You summarise texts in one short sentence."),
        ("user", f"Summarise: {ARTICLE}"),
        temperature=0,
        max_completion_tokens=60,
    )
    summary = answer.choices[0].message.content or ""
    assert 0 < len(summary) < len(ARTICLE)
    assert "Finland" in summary


def test_a_translation_is_streamed_piece_by_piece(course: Course) -> None:
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in course.chat.chat.completions.create(
            model=course.model.id,
            messages=[{"role": "user", "content": "Translate to French: Good morning, my friend."}],
            temperature=0,
            max_completion_tokens=40,
            stream=True,
        )
        if chunk.choices
    ]
    assert len(pieces) > 3
    assert "jour" in "".join(pieces).lower()


def test_an_answer_as_json_holds_the_fields_asked_for(course: Course) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}, "country": {"type": "string", "maxLength": 30}},
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    answer = course.ask(
        ("user", f"{ARTICLE} Which city and country is this about? Answer as JSON."),
        temperature=0,
        max_completion_tokens=60,
        response_format=form,
    )
    place = json.loads(answer.choices[0].message.content or "")
    assert set(place) == {"city", "country"}
    assert "Helsinki" in place["city"]


def test_any_json_object_can_be_asked_for(course: Course) -> None:
    answer = course.ask(
        ("user", "Describe a cat as a JSON object with name and age."),
        temperature=0,
        max_completion_tokens=120,
        response_format={"type": "json_object"},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)

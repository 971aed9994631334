"""instructor: objects of a class, from response_format and from tool calls."""

from __future__ import annotations

import instructor
import openai
from facts import API, HEADERS, MODEL, NO_MODEL, PERSON, error_of, example, report
from instructor.core import InstructorRetryException
from person import Person
from pydantic import model_validator

plain = openai.OpenAI(base_url=API, api_key="none", default_headers=HEADERS, max_retries=0)
messages = [{"role": "user", "content": PERSON}]
fields = {"model": MODEL, "messages": messages, "response_model": Person, "temperature": 0, "max_retries": 0}
fields["max_tokens"] = 100

client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
person, completion = client.chat.completions.create_with_completion(**fields)
parts = list(client.chat.completions.create_partial(**fields))
by_call = instructor.from_openai(plain, mode=instructor.Mode.TOOLS).chat.completions.create(**fields)

tried: list[str] = []


class PickyPerson(Person):
    @model_validator(mode="after")
    def _fails_once(self) -> PickyPerson:
        tried.append(self.name)
        if len(tried) == 1:
            raise ValueError("say it once more")
        return self


# instructor returns the validation error to the model as the result of the tool call.
picky = instructor.from_openai(plain, mode=instructor.Mode.TOOLS).chat.completions.create(
    **fields | {"response_model": PickyPerson, "max_retries": 3, "messages": [*messages]}
)

try:
    client.chat.completions.create(**fields | {"model": NO_MODEL})
except InstructorRetryException as caught:
    error = error_of(caught)

report(
    person=person.model_dump(),
    usage=[completion.usage.prompt_tokens, completion.usage.completion_tokens],
    parts=len(parts),
    last_part=parts[-1].model_dump(),
    error=error,
    by_call=by_call.model_dump(),
    by_second_call=picky.model_dump(),
    tries=len(tried),
    example=example(),
)

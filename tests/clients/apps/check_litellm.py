"""litellm: the provider `openai/` with the server as `api_base`."""

from __future__ import annotations

import asyncio
import json

import litellm
from facts import API, HEADERS, MAX_TOKENS, MODEL, NO_MODEL, PERSON, QUESTION, STOP, error_of, example, report
from person import Person
from weather import ASK, TOOL

litellm.suppress_debug_info = True
common = {"api_base": API, "api_key": "none", "extra_headers": HEADERS, "max_retries": 0, "temperature": 0}
fields = {"model": f"openai/{MODEL}", "messages": [{"role": "user", "content": QUESTION}], **common}
fields["max_tokens"] = MAX_TOKENS

answer = litellm.completion(**fields)
*chunks, last = litellm.completion(**fields, stream=True, stream_options={"include_usage": True})
cut = litellm.completion(**fields | {"max_tokens": 3})
stopped = litellm.completion(**fields, stop=[STOP])
several = litellm.completion(**fields | {"temperature": 1, "max_tokens": 8}, n=3, seed=7)
scored = litellm.completion(**fields, logprobs=True, top_logprobs=2)
continued = litellm.text_completion(
    model=f"text-completion-openai/{MODEL}", prompt="1, 2, 3, 4, 5, 6,", max_tokens=5, **common
)
person = litellm.completion(
    **fields | {"max_tokens": 100, "messages": [{"role": "user", "content": PERSON}]}, response_format=Person
)
asked = fields | {"messages": [{"role": "user", "content": ASK}], "max_tokens": 100}
(called,) = litellm.completion(**asked, tools=[TOOL], tool_choice="required").choices[0].message.tool_calls[:1]
call = [called.function.name, json.loads(called.function.arguments)]

try:
    litellm.completion(**fields | {"model": f"openai/{NO_MODEL}"})
except litellm.NotFoundError as caught:
    error = error_of(caught)

report(
    answer=answer.choices[0].message.content,
    async_answer=asyncio.run(litellm.acompletion(**fields)).choices[0].message.content,
    pieces=[choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content],
    usage=[answer.usage.prompt_tokens, answer.usage.completion_tokens],
    stream_usage=[last.usage.prompt_tokens, last.usage.completion_tokens],
    cut=[cut.choices[0].message.content, cut.choices[0].finish_reason],
    stopped=[stopped.choices[0].message.content, stopped.choices[0].finish_reason],
    scored="".join(token.token for token in scored.choices[0].logprobs.content),
    several=len(several.choices),
    continued=continued.choices[0].text,
    person=Person.model_validate_json(person.choices[0].message.content).model_dump(),
    error=error,
    call=call,
    example=example(),
)

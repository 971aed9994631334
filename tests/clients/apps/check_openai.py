"""The openai package on the real engine. test_openai_package.py tests it on the scripted engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
from facts import API, HEADERS, MAX_TOKENS, MODEL, NO_MODEL, PERSON, QUESTION, STOP, error_of, example, report
from person import Person
from weather import ASK, TOOL

client = openai.OpenAI(base_url=API, api_key="none", default_headers=HEADERS, max_retries=0)
messages = [{"role": "user", "content": QUESTION}]
fields: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0, "max_completion_tokens": MAX_TOKENS}

answer = client.chat.completions.create(**fields)
with client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}) as stream:
    *chunks, last = stream
cut = client.chat.completions.create(**fields | {"max_completion_tokens": 3})
stopped = client.chat.completions.create(**fields, stop=STOP)
several = client.chat.completions.create(**fields | {"temperature": 1}, n=3, seed=7)
scored = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
text: dict[str, Any] = {"model": MODEL, "prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 5, "temperature": 0}
continued = client.completions.create(**text)
echoed = client.completions.create(**text, echo=True, logprobs=1)
person = client.chat.completions.parse(
    model=MODEL,
    messages=[{"role": "user", "content": PERSON}],
    temperature=0,
    max_completion_tokens=100,
    response_format=Person,
)
parsed = person.choices[0].message.parsed
assert parsed is not None

asked: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": ASK}],
    "temperature": 0,
    "max_completion_tokens": 100,
    "tools": [TOOL],
}
(called,) = client.chat.completions.create(**asked, tool_choice="required").choices[0].message.tool_calls[:1]
call = [called.function.name, json.loads(called.function.arguments)]
with client.chat.completions.stream(**asked, tool_choice="required") as stream:
    streamed_calls = stream.get_final_completion().choices[0].message.tool_calls
assert streamed_calls
streamed = streamed_calls[0]
streamed_call = [streamed.function.name, json.loads(streamed.function.arguments)]
result = {"role": "tool", "tool_call_id": called.id, "content": "Snow in Oulu."}
messages_then = [*asked["messages"], {"role": "assistant", "tool_calls": [called.model_dump()]}, result]
after = client.chat.completions.create(**asked | {"messages": messages_then})


async def ask_async() -> str | None:
    async with openai.AsyncOpenAI(base_url=API, api_key="none", max_retries=0) as client:
        content: str | None = (await client.chat.completions.create(**fields)).choices[0].message.content
        return content


try:
    client.chat.completions.create(**fields | {"model": NO_MODEL})
except openai.NotFoundError as caught:
    error = error_of(caught)

report(
    answer=answer.choices[0].message.content,
    async_answer=asyncio.run(ask_async()),
    pieces=[choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content],
    usage=[answer.usage.prompt_tokens, answer.usage.completion_tokens],
    stream_usage=[last.usage.prompt_tokens, last.usage.completion_tokens],
    cut=[cut.choices[0].message.content, cut.choices[0].finish_reason],
    stopped=[stopped.choices[0].message.content, stopped.choices[0].finish_reason],
    several=[choice.message.content for choice in several.choices],
    scored="".join(token.token for token in scored.choices[0].logprobs.content),
    logprobs=[token.logprob for token in scored.choices[0].logprobs.content],
    continued=continued.choices[0].text,
    echoed=echoed.choices[0].text,
    echoed_tokens=echoed.choices[0].logprobs.tokens,
    models=[model.id for model in client.models.list()],
    person=parsed.model_dump(),
    error=error,
    call=call,
    streamed_call=streamed_call,
    after=after.choices[0].message.content,
    example=example(),
)

"""langchain-openai: a chat model and a text model with the server as `base_url`."""

from __future__ import annotations

import asyncio

import openai
from facts import API, HEADERS, MAX_TOKENS, MODEL, NO_MODEL, PERSON, QUESTION, STOP, error_of, example, report
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI
from person import Person
from weather import ASK, TOOL

common = {"base_url": API, "api_key": "none", "default_headers": HEADERS, "max_retries": 0, "temperature": 0}
chat = ChatOpenAI(model=MODEL, max_completion_tokens=MAX_TOKENS, stream_usage=True, **common)
roomy = ChatOpenAI(model=MODEL, max_completion_tokens=100, **common)

answer = chat.invoke(QUESTION)
chunks = list(chat.stream(QUESTION))
whole = chunks[0]
for chunk in chunks[1:]:
    whole += chunk
cut = chat.invoke(QUESTION, max_completion_tokens=3)
stopped = chat.invoke(QUESTION, stop=[STOP])
scored = chat.bind(logprobs=True).invoke(QUESTION)
several = ChatOpenAI(model=MODEL, max_completion_tokens=8, n=3, seed=7, **common | {"temperature": 1}).generate(
    [[HumanMessage(QUESTION)]]
)
continued = OpenAI(model=MODEL, max_tokens=5, **common).invoke("1, 2, 3, 4, 5, 6,")
# The package's default method, made for OpenAI's newer models.
person = roomy.with_structured_output(Person).invoke(PERSON)
# LangChain calls a required tool call "any".
with_tools = roomy.bind_tools([TOOL], tool_choice="any")
(called,) = with_tools.invoke(ASK).tool_calls[:1]
call = [called["name"], called["args"]]
parts = list(with_tools.stream(ASK))
joined = parts[0]
for part in parts[1:]:
    joined += part
(streamed,) = joined.tool_calls[:1]

try:
    ChatOpenAI(model=NO_MODEL, **common).invoke(QUESTION)
except openai.NotFoundError as caught:
    error = error_of(caught)

report(
    answer=answer.content,
    async_answer=asyncio.run(chat.ainvoke(QUESTION)).content,
    batch=[one.content for one in chat.batch([QUESTION, QUESTION])],
    pieces=[chunk.content for chunk in chunks if chunk.content],
    usage=[answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]],
    stream_usage=[whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]],
    cut=[cut.content, cut.response_metadata["finish_reason"]],
    stopped=[stopped.content, stopped.response_metadata["finish_reason"]],
    scored="".join(token["token"] for token in scored.response_metadata["logprobs"]["content"]),
    several=len(several.generations[0]),
    continued=continued,
    person=person.model_dump(),
    error=error,
    call=call,
    streamed_call=[streamed["name"], streamed["args"]],
    example=example(),
)

"""llama-index: OpenAILike, as a chat model and as a text model."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from facts import API, HEADERS, MAX_TOKENS, MODEL, NO_MODEL, QUESTION, STOP, error_of, example, report
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from weather import ASK, City, get_weather

common = {
    "api_base": API,
    "api_key": "none",
    "default_headers": HEADERS,
    "max_retries": 0,
    "temperature": 0,
    "is_chat_model": True,
    "context_window": 8192,
    "max_tokens": MAX_TOKENS,
}
llm = OpenAILike(model=MODEL, **common)
messages = [ChatMessage(role="user", content=QUESTION)]

answer = llm.chat(messages)
chunks = list(llm.stream_chat(messages, stream_options={"include_usage": True}))
cut = OpenAILike(model=MODEL, **common | {"max_tokens": 3}).chat(messages)
stopped = llm.chat(messages, stop=[STOP])
text = OpenAILike(model=MODEL, **common | {"is_chat_model": False, "max_tokens": 5})
calling = OpenAILike(model=MODEL, **common | {"is_function_calling_model": True, "max_tokens": 100})
response = calling.chat_with_tools([FunctionTool.from_defaults(get_weather, fn_schema=City)], ASK, tool_required=True)
called = calling.get_tool_calls_from_response(response)[0]
call = [called.tool_name, called.tool_kwargs]

try:
    OpenAILike(model=NO_MODEL, **common).chat(messages)
except openai.NotFoundError as caught:
    error = error_of(caught)


def usage_of(response: Any) -> list[int]:
    return [response.raw.usage.prompt_tokens, response.raw.usage.completion_tokens]


report(
    answer=answer.message.content,
    async_answer=asyncio.run(llm.achat(messages)).message.content,
    pieces=[chunk.delta for chunk in chunks if chunk.delta],
    usage=usage_of(answer),
    stream_usage=usage_of(chunks[-1]),
    cut=[cut.message.content, cut.raw.choices[0].finish_reason],
    stopped=[stopped.message.content, stopped.raw.choices[0].finish_reason],
    continued=text.complete("1, 2, 3, 4, 5, 6,").text,
    streamed_text="".join(chunk.delta for chunk in text.stream_complete("1, 2, 3, 4, 5, 6,")),
    error=error,
    call=call,
    example=example(),
)

"""haystack: OpenAIChatGenerator, in a pipeline and alone."""

from __future__ import annotations

from typing import Any

import openai
from facts import API, HEADERS, MAX_TOKENS, MODEL, NO_MODEL, PERSON, QUESTION, STOP, error_of, example, report
from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret
from person import Person
from weather import ASK, TOOL, get_weather

SETTINGS = {"temperature": 0, "max_completion_tokens": MAX_TOKENS}


def generator(model: str = MODEL, **options: object) -> OpenAIChatGenerator:
    return OpenAIChatGenerator(
        model=model,
        api_base_url=API,
        api_key=Secret.from_token("none"),
        generation_kwargs=SETTINGS,
        http_client_kwargs={"headers": HEADERS},
        max_retries=0,
        **options,
    )


def ask(question: str = QUESTION, **kwargs: object) -> ChatMessage:
    (reply,) = generator().run([ChatMessage.from_user(question)], generation_kwargs=kwargs)["replies"]
    return reply


pipeline = Pipeline()
pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("What is the capital of {{ country }}?")]))
pipeline.add_component("llm", generator())
pipeline.connect("prompt.prompt", "llm.messages")
(answer,) = pipeline.run({"prompt": {"country": "Japan"}})["llm"]["replies"]

chunks: list[Any] = []
(streamed,) = generator(streaming_callback=chunks.append).run(
    [ChatMessage.from_user(QUESTION)], generation_kwargs={"stream_options": {"include_usage": True}}
)["replies"]
cut = ask(max_completion_tokens=3)
stopped = ask(stop=[STOP])
person = ask(PERSON, response_format=Person, max_completion_tokens=100)
tool = Tool(**TOOL["function"], function=get_weather)
(message,) = generator(tools=[tool]).run(
    [ChatMessage.from_user(ASK)], generation_kwargs={"tool_choice": "required", "max_completion_tokens": 100}
)["replies"]
call = [message.tool_calls[0].tool_name, message.tool_calls[0].arguments]

try:
    generator(NO_MODEL).run([ChatMessage.from_user(QUESTION)])
except openai.NotFoundError as caught:
    error = error_of(caught)


def usage_of(message: ChatMessage) -> list[int]:
    return [message.meta["usage"]["prompt_tokens"], message.meta["usage"]["completion_tokens"]]


report(
    answer=answer.text,
    pieces=[chunk.content for chunk in chunks if chunk.content],
    usage=usage_of(answer),
    stream_usage=usage_of(streamed),
    cut=[cut.text, cut.meta["finish_reason"]],
    stopped=[stopped.text, stopped.meta["finish_reason"]],
    person=Person.model_validate_json(person.text).model_dump(),
    error=error,
    call=call,
    example=example(),
)

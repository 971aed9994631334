"""pydantic-ai: an agent that uses the server's model."""

from __future__ import annotations

import asyncio

from facts import API, HEADERS, MAX_TOKENS, MODEL, NO_MODEL, PERSON, QUESTION, STOP, error_of, example, report
from openai import AsyncOpenAI
from person import Person
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(
    openai_client=AsyncOpenAI(base_url=API, api_key="none", default_headers=HEADERS, max_retries=0)
)
model = OpenAIChatModel(MODEL, provider=provider)
settings = {"temperature": 0, "max_tokens": MAX_TOKENS}


async def main() -> dict[str, object]:
    agent = Agent(model, model_settings=settings)
    answer = await agent.run(QUESTION)
    async with agent.run_stream(QUESTION) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    cut = await agent.run(QUESTION, model_settings={"max_tokens": 3})
    stopped = await agent.run(QUESTION, model_settings={"stop_sequences": [STOP]})
    person = await Agent(
        model, output_type=NativeOutput(Person), model_settings={"temperature": 0, "max_tokens": 100}
    ).run(PERSON)
    # A bare output type uses a tool call.
    by_call = await Agent(model, output_type=Person, model_settings={"temperature": 0, "max_tokens": 100}).run(PERSON)
    try:
        await Agent(OpenAIChatModel(NO_MODEL, provider=provider)).run(QUESTION)
    except ModelHTTPError as caught:
        error = error_of(caught)
    return {
        "answer": answer.output,
        "pieces": pieces,
        "usage": [answer.usage.input_tokens, answer.usage.output_tokens],
        "stream_usage": [stream.usage.input_tokens, stream.usage.output_tokens],
        "cut": [cut.output, cut.response.finish_reason],
        "stopped": [stopped.output, stopped.response.finish_reason],
        "person": person.output.model_dump(),
        "error": error,
        "by_call": by_call.output.model_dump(),
    }


report(**asyncio.run(main()), example=example())

"""openai-agents over chat completions, without its tracing."""

from __future__ import annotations

import asyncio

import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from facts import API, HEADERS, MAX_TOKENS, MODEL, NO_MODEL, PERSON, QUESTION, error_of, example, report
from person import Person
from weather import ASK, calls, get_weather

set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=API, api_key="none", default_headers=HEADERS, max_retries=0)
settings = ModelSettings(temperature=0, max_tokens=MAX_TOKENS, include_usage=True)


def agent(model: str = MODEL, **options: object) -> Agent:
    return Agent(
        "check", model=OpenAIChatCompletionsModel(model, openai_client=client), model_settings=settings, **options
    )


async def main() -> dict[str, object]:
    answer = await Runner.run(agent(), QUESTION)
    stream = Runner.run_streamed(agent(), QUESTION)
    pieces = [
        event.data.delta
        async for event in stream.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    settings.max_tokens = 100
    person = await Runner.run(agent(output_type=Person), PERSON)
    # The agent runs the function and asks again without requiring a call.
    settings.tool_choice = "required"
    after = await Runner.run(agent(tools=[function_tool(get_weather)]), ASK)
    settings.tool_choice = None
    try:
        await Runner.run(agent(NO_MODEL), QUESTION)
    except openai.NotFoundError as caught:
        error = error_of(caught)
    used, streamed = answer.context_wrapper.usage, stream.context_wrapper.usage
    return {
        "answer": answer.final_output,
        "pieces": pieces,
        "usage": [used.input_tokens, used.output_tokens],
        "stream_usage": [streamed.input_tokens, streamed.output_tokens],
        "person": person.final_output.model_dump(),
        "error": error,
        "call": ["get_weather", {"city": calls[0]}],
        "after": after.final_output,
    }


report(**asyncio.run(main()), example=example())

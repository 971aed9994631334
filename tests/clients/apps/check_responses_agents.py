"""openai-agents with its own model of the Responses API, over HTTP and over a WebSocket, without its tracing."""

from __future__ import annotations

import asyncio

import openai
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIResponsesModel,
    OpenAIResponsesWSModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from facts import API, MODEL, NO_MODEL, PERSON, QUESTION, report
from person import Person
from weather import ASK, calls, get_weather

set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=API, api_key="none", max_retries=0)


async def facts_of(kind: type[Model]) -> dict[str, object]:
    def agent(model: str = MODEL, **options: object) -> Agent:
        return Agent("check", model=kind(model, openai_client=client), model_settings=ModelSettings(), **options)

    answer = await Runner.run(agent(), QUESTION)
    stream = Runner.run_streamed(agent(), QUESTION)
    pieces = [
        event.data.delta
        async for event in stream.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    person = await Runner.run(agent(output_type=Person), PERSON)
    calls.clear()
    after = await Runner.run(agent(tools=[function_tool(get_weather)]), ASK)
    second = await Runner.run(agent(), "And tomorrow?", previous_response_id=answer.last_response_id)
    try:
        await Runner.run(agent(NO_MODEL), QUESTION)
    except Exception as caught:
        error = [type(caught).__name__, str(caught)]
    used, streamed = answer.context_wrapper.usage, stream.context_wrapper.usage
    return {
        "texts": [answer.final_output, "".join(pieces), stream.final_output, after.final_output, second.final_output],
        "usage": [used.input_tokens, used.output_tokens],
        "stream_usage": [streamed.input_tokens, streamed.output_tokens],
        "second_input": second.context_wrapper.usage.input_tokens,
        "person": person.final_output.model_dump(),
        "ran": list(calls),
        "error": error,
    }


async def main() -> list[dict[str, object]]:
    return [await facts_of(kind) for kind in (OpenAIResponsesModel, OpenAIResponsesWSModel)]


over_http, over_websocket = asyncio.run(main())
report(http=over_http, websocket=over_websocket)

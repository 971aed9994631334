"""Ask several questions at once; the server processes them together."""

import asyncio
import os
import sys
import time

from openai import AsyncOpenAI, OpenAIError

URL = os.environ.get("TOKKA_URL", "http://127.0.0.1:8000")
API_KEY = os.environ.get("TOKKA_API_KEY", "none")
COUNTRIES = ["France", "Italy", "Japan", "Germany"]


async def ask(client: AsyncOpenAI, model: str, country: str) -> float:
    start = time.monotonic()
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"What is the capital of {country}?"}],
        max_completion_tokens=200,
        temperature=0,
    )
    took = time.monotonic() - start
    print(f"{country} ({took:.2f} s): {answer.choices[0].message.content}")
    return took


async def main() -> None:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=API_KEY) as client:
        model = (await client.models.list()).data[0].id
        start = time.monotonic()
        took = await asyncio.gather(*(ask(client, model, country) for country in COUNTRIES))
        elapsed = time.monotonic() - start
    print(f"{len(took)} answers in {elapsed:.2f} s; one after another the same waiting adds up to {sum(took):.2f} s.")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except OpenAIError as error:
        sys.exit(f"{type(error).__name__}: {error}")

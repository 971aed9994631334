"""Stream an answer and print its usage at the end."""

import os
import sys
import time

from openai import OpenAI, OpenAIError

URL = os.environ.get("TOKKA_URL", "http://127.0.0.1:8000")
API_KEY = os.environ.get("TOKKA_API_KEY", "none")


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=API_KEY)
    model = client.models.list().data[0].id
    start = time.monotonic()
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me about Helsinki in three sentences."}],
        max_completion_tokens=300,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces = 0
    first = 0.0
    finish_reason = usage = None
    for chunk in stream:
        # The last chunk has the usage and no choices.
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            if choice.delta.content:
                first = first or time.monotonic() - start
                pieces += 1
                print(choice.delta.content, end="", flush=True)
    print()
    if finish_reason is None or usage is None:
        sys.exit("The stream broke off; the answer is not complete.")
    print("finish_reason:", finish_reason)
    print(f"{pieces} pieces, the first after {first:.2f} s, the last after {time.monotonic() - start:.2f} s.")
    print(f"{usage.prompt_tokens} tokens read + {usage.completion_tokens} written = {usage.total_tokens}")


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        sys.exit(f"{type(error).__name__}: {error}")

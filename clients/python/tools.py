"""Let the model call functions of yours: it says which and with what, you run them and tell it what came out."""

import json
import os
import sys

from openai import OpenAI, OpenAIError

URL = os.environ.get("TOKKA_URL", "http://127.0.0.1:8000")
API_KEY = os.environ.get("TOKKA_API_KEY", "none")
QUESTION = "What is the weather in Oulu?"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city, now.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


def get_weather(city: str) -> str:
    return f"-3 degrees and snow in {city}"


def run(name: str, arguments: str) -> str:
    """Return what a call gives. A model may write what it likes: whatever goes wrong is told to it."""
    try:
        return {"get_weather": get_weather}[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError) as error:
        return f"error: {error!r}"


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=API_KEY)
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": QUESTION}]
    print("Question:", QUESTION)

    # tool_choice="required" would make any model call one, whether it is good at it or not.
    answer = client.chat.completions.create(
        model=model, messages=messages, tools=TOOLS, max_completion_tokens=200, temperature=0
    )
    message = answer.choices[0].message
    print("finish_reason:", answer.choices[0].finish_reason)
    if message.tool_calls:
        messages.append(message)
        for call in message.tool_calls:
            result = run(call.function.name, call.function.arguments)
            print(f"Call: {call.function.name}({call.function.arguments}) = {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        # No more calls: an answer is wanted now.
        answer = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, tool_choice="none", max_completion_tokens=200, temperature=0
        )
        message = answer.choices[0].message
    print("Answer:", message.content)


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        sys.exit(f"{type(error).__name__}: {error}")

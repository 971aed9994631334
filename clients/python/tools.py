"""Let the model call your functions: it returns tool calls, you run them and send the results back."""

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
    """Run a tool call and return its result. The model may write invalid calls, so errors go back as the result."""
    try:
        return {"get_weather": get_weather}[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError) as error:
        return f"error: {error!r}"


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=API_KEY)
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": QUESTION}]
    print("Question:", QUESTION)

    # tool_choice="required" forces a call with any model, even one without training for tools.
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
        # Forbid further calls, so that the model answers.
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

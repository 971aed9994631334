"""Ask one question and print the answer."""

import os
import sys

from openai import OpenAI, OpenAIError

URL = os.environ.get("TOKKA_URL", "http://127.0.0.1:8000")
API_KEY = os.environ.get("TOKKA_API_KEY", "none")
QUESTION = "What is the capital of France?"


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=API_KEY)
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_completion_tokens=200,
        temperature=0,
    )
    choice = answer.choices[0]
    print("Question:", QUESTION)
    print("Answer:", choice.message.content)
    print("finish_reason:", choice.finish_reason)
    print(f"{model} read {answer.usage.prompt_tokens} tokens and wrote {answer.usage.completion_tokens}.")


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        sys.exit(f"{type(error).__name__}: {error}")

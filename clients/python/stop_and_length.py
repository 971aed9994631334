"""Show the ways an answer ends, and how to control its end.

If an answer is cut off (finish_reason "length"), it hit a token limit, often the default one. Raise
max_completion_tokens.
"""

import os
import sys

from openai import OpenAI, OpenAIError

URL = os.environ.get("TOKKA_URL", "http://127.0.0.1:8000")
API_KEY = os.environ.get("TOKKA_API_KEY", "none")
MESSAGES = [{"role": "user", "content": "Tell me about Helsinki in three sentences."}]


def show(title: str, answer) -> None:
    print(f"\n{title}")
    for choice in answer.choices:
        text = choice.message.content if hasattr(choice, "message") else choice.text
        # stop_reason is a Tokka extension: the stop string or token id that matched.
        stop_reason = (choice.model_extra or {}).get("stop_reason")
        print(f"  answer: {text!r}")
        print(f"  finish_reason: {choice.finish_reason}, stop_reason: {stop_reason}")
    print(f"  tokens written: {answer.usage.completion_tokens}")


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=API_KEY)
    model = client.models.list().data[0].id

    answer = client.completions.create(model=model, prompt="Helsinki is", temperature=0)
    show("1. Nothing said, text completion: 16 tokens, then it is cut off (finish_reason length).", answer)

    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_completion_tokens=10)
    show("2. max_completion_tokens=10: cut off as well.", answer)

    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_completion_tokens=300)
    show("3. max_completion_tokens=300: room enough, the model ends by itself (finish_reason stop).", answer)

    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_completion_tokens=300, stop=["."]
    )
    show("4. stop=['.']: ends at the first full stop, which is left out.", answer)

    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_completion_tokens=300,
        stop=["."],
        # Tokka's own fields go into extra_body.
        extra_body={"include_stop_str_in_output": True},
    )
    show("5. include_stop_str_in_output: the same, with the full stop.", answer)

    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=1, max_completion_tokens=20, n=3, seed=7
    )
    show("6. n=3: three answers to one question. The limit is for each of them.", answer)

    again = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=1, max_completion_tokens=20, n=3, seed=7
    )
    same = [choice.message.content for choice in answer.choices] == [choice.message.content for choice in again.choices]
    print(f"\n7. seed=7 once more: the same three answers: {'yes' if same else 'no'}")


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        sys.exit(f"{type(error).__name__}: {error}")

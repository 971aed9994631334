"""Complete a text without a chat, as base models do, and print the log-probability of each prompt token."""

import os
import sys

from openai import OpenAI, OpenAIError

URL = os.environ.get("TOKKA_URL", "http://127.0.0.1:8000")
API_KEY = os.environ.get("TOKKA_API_KEY", "none")
PROMPT = "The capital of France is"


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=API_KEY)
    model = client.models.list().data[0].id

    # The default of max_tokens is 16.
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
    print("Prompt:", PROMPT)
    print("Continued:", answer.choices[0].text)
    print("finish_reason:", answer.choices[0].finish_reason)

    # echo with max_tokens=0 generates no token and scores the prompt.
    scored = client.completions.create(model=model, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    choice = scored.choices[0]
    print("\nHow likely the prompt is, token by token (logprob: 0 is certain):")
    for token, logprob in zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, strict=True):
        # The first token has no logprob, because no token precedes it.
        print("      -" if logprob is None else f"{logprob:7.2f}", repr(token), sep="  ")
    print(f"{scored.usage.prompt_tokens} tokens read, {scored.usage.completion_tokens} written")


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        sys.exit(f"{type(error).__name__}: {error}")

"""aitta-client: finds a model by name, then uses it through the openai package. tests/api/test_aitta.py has more."""

from __future__ import annotations

import openai
from aitta_client import Client, Model, ModelNotFoundError, StaticAccessTokenSource
from facts import HEADERS, MAX_TOKENS, MODEL, NO_MODEL, QUESTION, URL, error_of, example, report

client = Client(URL, StaticAccessTokenSource("none"))
model = Model.load(MODEL, client)
chat = openai.OpenAI(base_url=model.openai_api_url, api_key="none", default_headers=HEADERS, max_retries=0)
fields = {"model": model.id, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
fields["max_tokens"] = MAX_TOKENS

answer = chat.chat.completions.create(**fields)
with chat.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}) as stream:
    *chunks, last = stream
cut = chat.chat.completions.create(**fields | {"max_tokens": 3})

try:
    Model.load(NO_MODEL, client)
except ModelNotFoundError as caught:
    error = error_of(caught)

report(
    models=[one.id for one in client.get_model_list()],
    answer=answer.choices[0].message.content,
    pieces=[choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content],
    usage=[answer.usage.prompt_tokens, answer.usage.completion_tokens],
    stream_usage=[last.usage.prompt_tokens, last.usage.completion_tokens],
    cut=[cut.choices[0].message.content, cut.choices[0].finish_reason],
    error=error,
    example=example(),
)

"""`prompt_logprobs` and `return_tokens_as_token_ids`, in the form that vLLM's clients read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.protocol import streams as streaming
from tests.protocol.bodies import CHAT, COMPLETION
from tokka.core import Accepted, ChoiceDone, Event, Finished, PromptLogprobs, TextDelta, TokenLogprob, Usage
from tokka.dispatch.answer_size import answer_bytes
from tokka.errors import InvalidRequest
from tokka.protocol.chat import ChatRequest
from tokka.protocol.chat_answer import ChatEncoder
from tokka.protocol.completions import CompletionEncoder, CompletionRequest
from tokka.protocol.response_models import ChatCompletion, Completion
from tokka.protocol.validation import validated

ENDPOINTS: list[tuple[Any, Any, dict[str, Any], Any]] = [
    (ChatRequest, ChatEncoder, CHAT, ChatCompletion),
    (CompletionRequest, CompletionEncoder, COMPLETION, Completion),
]


def token(number: int, logprob: float | None, *top: TokenLogprob) -> TokenLogprob:
    text = chr(number)
    return TokenLogprob(number, text, text.encode(), logprob, top)


# The second token has rank 2, the third one rank 1.
SCORED: list[Event] = [
    PromptLogprobs(0, (token(65, None),), (0,)),
    PromptLogprobs(0, (token(66, -2.0, token(67, -1.0)), token(67, -0.5, token(67, -0.5))), (2, 1)),
]
WANTED = [
    None,
    {
        "66": {"logprob": -2.0, "rank": 2, "decoded_token": "B"},
        "67": {"logprob": -1.0, "rank": 1, "decoded_token": "C"},
    },
    {"67": {"logprob": -0.5, "rank": 1, "decoded_token": "C"}},
]


def answer_of(model: Any, encoder: Any, body: dict[str, Any], events: list[Event]) -> Any:
    asked = validated(model, json.dumps(body).encode())
    return streaming.answer_of(encoder(asked.answer_form(), "id", "fp"), events)


def whole(*events: Event, choices: int = 1) -> list[Event]:
    ends: list[Event] = [ChoiceDone(index, "stop") for index in range(choices)]
    return [Accepted(((65, 66, 67),)), *events, *ends, Finished(Usage(3, 0))]


@pytest.mark.parametrize(("model", "encoder", "base", "documented"), ENDPOINTS)
def test_prompt_logprobs_have_the_form_of_vllm(model: Any, encoder: Any, base: dict[str, Any], documented: Any) -> None:
    answer = answer_of(model, encoder, {**base, "prompt_logprobs": 1, "n": 2}, whole(*SCORED, choices=2))
    documented.model_validate_json(json.dumps(answer))
    places = [answer] if model is ChatRequest else answer["choices"]
    assert [place["prompt_logprobs"] for place in places] == [WANTED] * len(places)


@pytest.mark.parametrize(("model", "encoder", "base", "documented"), ENDPOINTS)
def test_prompt_logprobs_are_not_streamed(model: Any, encoder: Any, base: dict[str, Any], documented: Any) -> None:
    with pytest.raises(InvalidRequest, match="stream: false"):
        validated(model, json.dumps({**base, "prompt_logprobs": 0, "stream": True}).encode())


@pytest.mark.parametrize(("model", "encoder", "base", "documented"), ENDPOINTS)
def test_prompt_logprobs_take_room_in_the_answer(
    model: Any, encoder: Any, base: dict[str, Any], documented: Any
) -> None:
    accepted = Accepted((range(1000),), (1,))
    plain, scored = (
        answer_bytes(validated(model, json.dumps({**base, **fields}).encode()).to_core(), accepted)
        for fields in ({}, {"prompt_logprobs": 20})
    )
    entry = json.dumps({"decoded_token": " token", "logprob": -12.345678329467773, "rank": 123456})
    assert scored - plain >= 1000 * 21 * len(entry)


def test_chat_names_tokens_by_their_ids() -> None:
    delta = TextDelta(0, "B", (66,), (token(66, -2.0, token(67, -1.0)),))
    fields = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    answer = answer_of(ChatRequest, ChatEncoder, {**CHAT, **fields}, whole(delta))
    (shown,) = answer["choices"][0]["logprobs"]["content"]
    assert shown["token"] == "token_id:66"
    assert [top["token"] for top in shown["top_logprobs"]] == ["token_id:67"]
    assert shown["bytes"] == [66]


def test_completion_names_tokens_by_their_ids() -> None:
    delta = TextDelta(0, "B", (66,), (token(66, -2.0, token(67, -1.0)),))
    fields = {"logprobs": 1, "return_tokens_as_token_ids": True}
    answer = answer_of(CompletionRequest, CompletionEncoder, {**COMPLETION, **fields}, whole(delta))
    shown = answer["choices"][0]["logprobs"]
    assert shown["tokens"] == ["token_id:66"]
    assert shown["top_logprobs"] == [{"token_id:67": -1.0, "token_id:66": -2.0}]

"""The requests that another engine can continue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokka.core import ChatPrompt, Constraint, GenerateRequest, Prompt, Sampling, TextPrompt, Tools
from tokka.engine.generation.resume import can_resume, check_resume
from tokka.errors import InvalidRequest

CHAT = ChatPrompt(({"role": "user", "content": "Hei"},))
TOOLS = Tools(({"type": "function", "function": {"name": "f"}},))
GREEDY = Sampling(temperature=0.0)


def request_of(sampling: Sampling = GREEDY, prompts: tuple[Prompt, ...] = (CHAT,), **fields: Any) -> GenerateRequest:
    return GenerateRequest("id", "m", prompts, sampling, **fields)


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(top_p=0.0),
        # Each token is chosen by the model and these alone, wherever the prompt ends.
        replace(GREEDY, repetition_penalty=1.1, logit_bias={1: 2.0}, allowed_token_ids=(1, 2), top_k=5, min_p=0.1),
        replace(GREEDY, stop_token_ids=(1,), ignore_eos=True, seed=1, max_tokens=5, skip_special_tokens=False),
    ],
)
def test_greedy_text_can_be_resumed(sampling: Sampling) -> None:
    assert can_resume(request_of(sampling))
    assert can_resume(request_of(sampling, (TextPrompt("x"),)))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": None},
        {"temperature": 0.1},
        {"n": 2},
        {"constraint": Constraint("regex", "a+", "regex")},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"min_tokens": 1},
        {"thinking_token_budget": 5},
        {"bad_words": ("a",)},
        {"stop": ("a",)},
        {"logprobs": 0},
        {"prompt_logprobs": 0},
    ],
    ids="-".join,
)
def test_sampling_that_depends_on_earlier_tokens_cannot(changes: dict[str, Any]) -> None:
    assert not can_resume(request_of(replace(GREEDY, **changes)))


@pytest.mark.parametrize(
    "request_",
    [
        request_of(prompts=(CHAT, CHAT)),
        request_of(prompts=(replace(CHAT, tools=TOOLS),)),
        request_of(task="embed"),
        request_of(echo=True),
    ],
    ids=["prompts", "tools", "embed", "echo"],
)
def test_other_work_than_one_text_cannot_be_resumed(request_: GenerateRequest) -> None:
    assert not can_resume(request_)


def test_text_with_parsed_reasoning_is_not_resumed() -> None:
    request = request_of(resume=(1,))
    check_resume(request, 5, 10, is_read=False)
    with pytest.raises(InvalidRequest, match="cannot be resumed"):
        check_resume(request, 5, 10, is_read=True)


@pytest.mark.parametrize(
    ("tokens", "reason"), [((1, 2, 3), "has ended"), ((-1,), "token id -1"), ((3, 10), "ids of this model are 0 to 9")]
)
def test_tokens_that_no_choice_has_are_refused(tokens: tuple[int, ...], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        check_resume(request_of(resume=tokens), 3, 10, is_read=False)

"""The number of tokens that a request may generate, and the truncation of its prompt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.engine.contract import ask
from tokka.core import GenerateRequest, Sampling
from tokka.engine.generation.length import Truncation, allowed_tokens, truncation
from tokka.errors import ContextLengthExceeded, InvalidRequest


def limited(max_tokens: int | None, **sampling: Any) -> GenerateRequest:
    return ask(sampling=Sampling(max_tokens=max_tokens, **sampling), prompt_param="prompt")


def test_request_gets_its_max_tokens_when_they_fit() -> None:
    assert allowed_tokens(limited(5), prompt_tokens=10, max_model_len=100, cap=None) == 5


def test_prompt_and_completion_may_fill_the_context_exactly() -> None:
    assert allowed_tokens(limited(90), prompt_tokens=10, max_model_len=100, cap=None) == 90


def test_without_a_limit_the_rest_of_the_context_is_allowed() -> None:
    assert allowed_tokens(limited(None), prompt_tokens=10, max_model_len=100, cap=None) == 90


def test_without_a_limit_the_server_s_cap_is_allowed() -> None:
    assert allowed_tokens(limited(None), prompt_tokens=10, max_model_len=100, cap=20) == 20


def test_without_a_limit_the_cap_is_no_promise_of_room() -> None:
    assert allowed_tokens(limited(None), prompt_tokens=90, max_model_len=100, cap=20) == 10


def test_one_token_too_many_is_refused_with_the_three_numbers() -> None:
    with pytest.raises(ContextLengthExceeded) as refusal:
        allowed_tokens(limited(91), prompt_tokens=10, max_model_len=100, cap=None)
    assert refusal.value.param == "prompt"
    for number in ("100 tokens", "101 tokens", "10 in the prompt", "91 in the completion"):
        assert number in refusal.value.message


def test_a_prompt_that_fills_the_context_leaves_no_room() -> None:
    with pytest.raises(ContextLengthExceeded):
        allowed_tokens(limited(None), prompt_tokens=100, max_model_len=100, cap=None)


def test_a_prompt_that_is_only_scored_needs_room_for_one_token() -> None:
    assert allowed_tokens(limited(0), prompt_tokens=99, max_model_len=100, cap=None) == 0
    with pytest.raises(ContextLengthExceeded):
        allowed_tokens(limited(0), prompt_tokens=100, max_model_len=100, cap=None)


def test_more_than_the_cap_is_refused_naming_the_client_s_field() -> None:
    request = ask(sampling=Sampling(max_tokens=21), limit_param="max_tokens")
    with pytest.raises(InvalidRequest, match="at most 20") as refusal:
        allowed_tokens(request, prompt_tokens=10, max_model_len=100, cap=20)
    assert (refusal.value.param, refusal.value.code) == ("max_tokens", "invalid_value")


@pytest.mark.parametrize("max_tokens", [None, 20])
def test_min_tokens_beyond_the_allowed_tokens_are_refused(max_tokens: int | None) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        allowed_tokens(limited(max_tokens, min_tokens=21), prompt_tokens=10, max_model_len=100, cap=20)
    assert refusal.value.param == "min_tokens"


def test_min_tokens_may_equal_max_tokens() -> None:
    assert allowed_tokens(limited(5, min_tokens=5), prompt_tokens=10, max_model_len=100, cap=None) == 5


sizes = st.integers(0, 200)


@given(st.none() | sizes, sizes, st.integers(1, 200), st.none() | st.integers(1, 200))
def test_allowed_tokens_fit_context_and_cap(
    max_tokens: int | None, prompt_tokens: int, max_model_len: int, cap: int | None
) -> None:
    try:
        allowed = allowed_tokens(limited(max_tokens), prompt_tokens, max_model_len, cap)
    except InvalidRequest:
        assume(False)
    assert prompt_tokens + allowed <= max_model_len
    assert cap is None or allowed <= cap
    assert max_tokens in (None, allowed)


def test_model_default_bounds_a_request_without_limit() -> None:
    bounds: dict[str, Any] = {"prompt_tokens": 10, "max_model_len": 100, "default": 30}
    assert allowed_tokens(limited(None), cap=None, **bounds) == 30
    assert allowed_tokens(limited(None), cap=20, **bounds) == 20
    assert allowed_tokens(limited(60), cap=None, **bounds) == 60
    assert allowed_tokens(limited(None, default_max_tokens=16), cap=None, **bounds) == 16


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 10))
def test_truncation_keeps_one_side_of_the_tokens(ids: list[int], keep: int) -> None:
    last, first = Truncation(keep).of(ids), Truncation(keep, cuts_end=True).of(ids)
    assert len(last) == len(first) == min(keep, len(ids))
    assert list(last) == ids[len(ids) - len(last) :]
    assert list(first) == ids[: len(first)]


@given(st.none() | st.integers(0, 200), st.none() | st.just(16), st.integers(0, 20), st.sampled_from(["left", "right"]))
def test_truncation_to_the_context_leaves_room_for_the_answer(
    max_tokens: int | None, default: int | None, min_tokens: int, side: Any
) -> None:
    sampling = Sampling(max_tokens=max_tokens, default_max_tokens=default, min_tokens=min_tokens)
    request = ask(sampling=sampling, truncate_prompt_tokens=-1, truncation_side=side, prompt_param="prompt")
    kept = truncation(request, 100)
    assert kept is not None
    assert kept.cuts_end == (side == "right")
    assert 1 <= kept.keep < 100
    if min_tokens <= (default or 99 if max_tokens is None else max_tokens) < 100:
        assert allowed_tokens(request, kept.keep, 100, None) >= 1 - (max_tokens == 0)


def test_request_without_truncation_keeps_all_of_its_prompts() -> None:
    assert truncation(ask(), 100) is None


@pytest.mark.parametrize(
    ("cuts_end", "kept"), [(False, [101, 7, 8, 102]), (True, [101, 5, 6, 102])], ids=["start", "end"]
)
def test_tokens_around_a_text_stay(cuts_end: bool, kept: list[int]) -> None:
    cut = Truncation(4, cuts_end=cuts_end, before=(101,), after=(102,))
    assert cut.of([101, 5, 6, 7, 8, 102]) == kept


def test_tokens_around_a_text_go_without_room() -> None:
    assert Truncation(2, before=(101,), after=(102,)).of([101, 5, 6, 102]) == [6, 102]

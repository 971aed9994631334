"""The checks of embedding requests: dimensions, length, token ids, names of fields."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tokka.core import ChatPrompt, GenerateRequest, Prompt, Sampling, TextPrompt, TokensPrompt
from tokka.engine.generation.embedding import (
    MOST_AT_ONCE,
    VectorLimits,
    check_dimensions,
    check_ids,
    check_length,
    choices_at_once,
    param_of,
    truncation_of,
)
from tokka.errors import ContextLengthExceeded, InvalidRequest, TokkaError, UnsupportedParameter


def request(*prompts: Prompt, dimensions: int | None = None, keep: int | None = None) -> GenerateRequest:
    return GenerateRequest(
        "r",
        "m",
        prompts,
        Sampling(),
        "embed",
        dimensions,
        prompt_param="input",
        truncate_prompt_tokens=keep,
        truncation_side="right",
    )


def limits(shorter: Collection[int] | None = ()) -> VectorLimits:
    return VectorLimits(max_model_len=10, vocab_size=100, dimensions=32, shorter=shorter)


@pytest.mark.parametrize(
    ("shorter", "asked", "given"),
    [((), None, 32), ((), 32, 32), (None, 5, 5), ({8, 16}, 16, 16)],
)
def test_allowed_dimensions(shorter: Collection[int] | None, asked: int | None, given: int) -> None:
    assert check_dimensions(request(dimensions=asked), limits(shorter)) == given


@pytest.mark.parametrize(
    ("shorter", "asked", "kind", "said"),
    [
        ((), 16, UnsupportedParameter, "leave dimensions out"),
        (None, 33, InvalidRequest, "at most that"),
        ({16, 8}, 9, InvalidRequest, "allows 8, 16"),
    ],
)
def test_other_dimensions_are_refused(
    shorter: Collection[int] | None, asked: int, kind: type[TokkaError], said: str
) -> None:
    with pytest.raises(kind, match=said) as refusal:
        check_dimensions(request(dimensions=asked), limits(shorter))
    assert refusal.value.param == "dimensions"


@pytest.mark.parametrize(("keep", "kept"), [(4, 4), (40, 10), (-1, 10)])
def test_long_inputs_are_cut_to_the_context_at_most(keep: int, kept: int) -> None:
    cut = truncation_of(request(keep=keep), limits())
    assert cut is not None
    assert (cut.keep, cut.cuts_end) == (kept, True)


def test_inputs_stay_whole_by_default() -> None:
    assert truncation_of(request(), limits()) is None


@pytest.mark.parametrize("ids", [[0, 100], [-1, 5]])
def test_foreign_token_ids_are_refused_with_the_remedy(ids: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False"):
        check_ids(ids, limits(), "input")


def test_own_token_ids_are_taken() -> None:
    check_ids([0, 99], limits(), "input")
    check_ids([], limits(), "input")


def test_input_beyond_the_context_is_refused() -> None:
    check_length(10, limits(), "input[0]")
    with pytest.raises(ContextLengthExceeded, match="11 tokens"):
        check_length(11, limits(), "input[0]")


def test_name_of_an_input_s_field() -> None:
    asked = request()
    assert param_of(asked, TextPrompt("x", param="query")) == "query"
    assert param_of(asked, TokensPrompt([1])) == param_of(asked, ChatPrompt(())) == "input"


def test_a_request_runs_a_part_of_its_inputs_at_once() -> None:
    assert choices_at_once(request(*[TextPrompt("x")] * 3)) == 3
    assert choices_at_once(request(*[TextPrompt("x")] * 2048)) == MOST_AT_ONCE

"""The engine's side of constraints: what it compiles and when it gives up. Run by test_guidance.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.vllm.tokenizer import EOS, byte_tokenizer
from tokka.engine.vllm import guidance
from tokka.engine.vllm.limits import STATES, with_limit, with_tag

# What torch and vLLM say of themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def backend() -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from vllm.v1 import structured_output

    guidance.take_ready_grammars()
    options = SimpleNamespace(disable_any_whitespace=False, disable_additional_properties=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_tokenizer()["tokenizer"]), eos_token="<end>"
    )
    return structured_output.GuidanceBackend(
        SimpleNamespace(structured_outputs_config=options), tokenizer=tokenizer, vocab_size=EOS + 1
    )


def compiled(backend: Any, lark: str) -> Any:
    return backend.compile_grammar(None, with_limit(lark, STATES))


def test_a_grammar_is_followed_to_its_end(backend: Any) -> None:
    grammar = compiled(backend, 'start: "ab"')
    assert [grammar.accept_tokens("r", [token]) for token in (*b"ab", EOS)] == [True, True, True]
    assert grammar.is_terminated()


def test_one_that_has_failed_takes_no_end_either(backend: Any) -> None:
    grammar = compiled(backend, 'start: "ab"')
    assert not grammar.accept_tokens("r", [ord("x")])
    # vLLM's own says yes, and half an answer passes for a whole one.
    assert not grammar.accept_tokens("r", [EOS])


def test_choices_of_one_request_do_not_share_their_place(backend: Any) -> None:
    first, second = compiled(backend, 'start: "ab"'), compiled(backend, 'start: "ab"')
    assert first.accept_tokens("r", [ord("a")])
    assert second.accept_tokens("r", [ord("a")])


def test_grammars_of_two_tags_are_compiled_apart(backend: Any) -> None:
    texts = [with_tag(with_limit('start: "ab"', STATES), tag) for tag in ("0123", "4567", "0123")]
    for text in texts:
        assert backend.compile_grammar(None, text).accept_tokens("r", [ord("a")])
    assert [text in backend._compiled for text in texts] == [True] * 3
    assert texts[0] != texts[1]


def test_what_is_kept_is_bounded(backend: Any) -> None:
    for number in range(guidance.KEPT + 5):
        compiled(backend, f'start: "{number}"')
    assert len(backend._compiled) == guidance.KEPT


@pytest.mark.parametrize("grammar", ["start: other", "", "{}", "no grammar"])
def test_what_was_not_made_ready_is_an_error(backend: Any, grammar: str) -> None:
    with pytest.raises(ValueError, match="does not compile"):
        compiled(backend, grammar)


def test_what_has_no_limit_is_an_error(backend: Any) -> None:
    with pytest.raises(ValueError, match="no limit"):
        backend.compile_grammar(None, 'start: "ab"')


def test_what_grows_too_large_has_failed_and_takes_no_end(backend: Any) -> None:
    # A character is some states.
    grammar = compiled(backend, f"start: /.{{0,{2 * STATES}}}/")
    bitmask = backend.allocate_token_bitmask(1)
    taken = 0
    while taken < STATES and grammar.accept_tokens("r", [ord("a")]):
        grammar.fill_bitmask(bitmask, 0)
        taken += 1
    assert STATES / 10 < taken < STATES
    assert "too many states" in grammar.ll_matcher.get_error()
    assert not grammar.accept_tokens("r", [EOS])

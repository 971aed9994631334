"""Constraints in the engine process: grammars that it compiles, and grammars that fail. Run by test_guidance.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.tokenizer import EOS, byte_tokenizer
from tokka.engine.grammars.compiler import Compiler
from tokka.engine.grammars.limits import STATES, with_limit, with_tag
from tokka.engine.vllm import guidance

# torch and vLLM emit warnings when they are imported.
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
    # vLLM's own grammar accepts it, so half an answer would pass for a whole one.
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


def test_backend_keeps_a_bounded_number_of_grammars(backend: Any) -> None:
    for number in range(guidance.KEPT + 5):
        compiled(backend, f'start: "{number}"')
    assert len(backend._compiled) == guidance.KEPT


@pytest.mark.parametrize("grammar", ["start: other", "", "{}", "no grammar"])
def test_grammar_fails_when_it_was_not_prepared(backend: Any, grammar: str) -> None:
    with pytest.raises(ValueError, match="does not compile"):
        compiled(backend, grammar)


def test_grammar_without_a_limit_is_an_error(backend: Any) -> None:
    with pytest.raises(ValueError, match="no limit"):
        backend.compile_grammar(None, 'start: "ab"')


def test_grammar_that_grows_too_large_fails_and_refuses_the_end_token(backend: Any) -> None:
    # Each character takes several states.
    grammar = compiled(backend, f"start: /.{{0,{2 * STATES}}}/")
    bitmask = backend.allocate_token_bitmask(1)
    taken = 0
    while taken < STATES and grammar.accept_tokens("r", [ord("a")]):
        grammar.fill_bitmask(bitmask, 0)
        taken += 1
    assert STATES / 10 < taken < STATES
    assert "too many states" in grammar.ll_matcher.get_error()
    assert not grammar.accept_tokens("r", [EOS])


# -- bounds beyond the schema


def held(backend: Any, kind: str, value: Any) -> Any:
    compiler = Compiler(**byte_tokenizer())
    return backend.compile_grammar(None, compiler.grammar(kind, json.dumps(value)))


def written(backend: Any, grammar: Any, wants: Callable[[str], str], most: int = 400) -> str:
    """Return the text of a model that writes the first allowed character of `wants(text)`, else the end, else any."""
    text, bitmask = "", backend.allocate_token_bitmask(1)
    for _ in range(most):
        grammar.fill_bitmask(bitmask, 0)
        allowed = {token for token in range(EOS + 1) if bitmask[0][token // 32] >> (token % 32) & 1}
        assert allowed, text
        wanted = [ord(char) for char in wants(text)]
        token = next((token for token in wanted if token in allowed), EOS if EOS in allowed else min(allowed))
        assert grammar.accept_tokens("r", [token])
        if token == EOS:
            return text
        text += chr(token)
    raise AssertionError(f"no end: {text}")


DIGITS = "3456789012"
NUMBERS: list[tuple[Any, str]] = [
    ({"type": "integer"}, DIGITS),
    ({"minimum": 0}, DIGITS),
    ({}, DIGITS),
    ({}, "-" + DIGITS),
    ({"type": "integer", "minimum": 5}, DIGITS),
    ({"type": "integer", "exclusiveMaximum": 5}, "-" + DIGITS),
    ({"type": "integer", "multipleOf": 7}, DIGITS),
    ({"multipleOf": 253, "exclusiveMinimum": 5}, DIGITS),
    ({"type": "number"}, DIGITS),
    ({"type": "number"}, "." + DIGITS),
    ({"type": "number"}, "0."),
    ({"type": "number"}, "e" + DIGITS),
    ({"type": "number", "minimum": 0, "maximum": 1}, "." + DIGITS),
    ({"type": "number", "minimum": -2.5}, "-." + DIGITS),
    ({"type": "number", "exclusiveMinimum": 0.1234567890123456, "exclusiveMaximum": 0.1234567890123457}, DIGITS),
    ({"type": "number", "multipleOf": 0.25, "minimum": 2**53 - 1}, "." + DIGITS),
    ({"anyOf": [{"type": "number"}, {"type": "string"}]}, "." + DIGITS),
]


@pytest.mark.parametrize(("schema", "likes"), NUMBERS, ids=str)
def test_a_number_ends_whatever_its_schema_leaves_open(backend: Any, schema: Any, likes: str) -> None:
    text = written(backend, held(backend, "json", schema), lambda _: likes)
    assert len(text) <= 40
    value = json.loads(text)
    assert isinstance(value, float) or -(2**63) <= value < 2**63
    digits = text.lower().partition("e")[0].strip("-").replace(".", "").lstrip("0")
    assert len(digits) <= (19 if isinstance(value, int) else 20)


def test_numbers_inside_of_objects_and_lists_end(backend: Any) -> None:
    schema = {
        "type": "object",
        "properties": {
            "age": {"type": "integer"},
            "list": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        },
        "required": ["age", "list"],
        "additionalProperties": False,
    }
    value = json.loads(written(backend, held(backend, "json", schema), lambda _: "." + DIGITS))
    assert value["age"] <= 2**63 - 1


@pytest.mark.parametrize("answer", [None, {"type": "integer"}])
@pytest.mark.parametrize("parallel", [True, False])
def test_numbers_of_calls_end_and_text_is_free(backend: Any, answer: Any, parallel: bool) -> None:
    arguments = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    constraint = {"functions": {"f": arguments}, "answer": answer, "parallel": parallel}
    begin = '<tool_call>\n{"name": "f", "arguments": {"n": '
    free = "1" * 60 + " " if answer is None else ""
    grammar = held(backend, "calls", constraint)

    def wants(text: str) -> str:
        place = len(text)
        return (free + begin)[place] if place < len(free + begin) else DIGITS + "}\n</tool_call>"

    text = written(backend, grammar, lambda text: "" if text.endswith("</tool_call>") else wants(text))
    assert text.startswith(free + begin)
    call = text[len(free) :].removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert json.loads(call)["arguments"]["n"] < 2**63


def test_a_bound_yields_where_the_schema_leaves_no_other_way(backend: Any) -> None:
    long = {"const": 0.1234567890123456789e-15}
    text = written(backend, held(backend, "json", long), lambda _: DIGITS)
    assert json.loads(text) == long["const"]
    grammar = backend.compile_grammar(None, with_limit('start: "aab" | "ab"', STATES, 'start: "a" /[^ab]/'))
    assert written(backend, grammar, lambda _: "ab") == "aab"


def test_a_bound_goes_back_with_its_grammar(backend: Any) -> None:
    grammar = held(backend, "json", {"type": "integer"})
    digits = [ord(char) for char in "123456789012345678"]
    assert grammar.accept_tokens("r", digits)
    assert grammar.validate_tokens([ord("1"), ord("2")]) == [ord("1")]
    assert grammar.validate_tokens([ord("1"), EOS]) == [ord("1"), EOS]
    grammar.rollback(2)
    assert grammar.validate_tokens([ord("1"), ord("2"), ord("3"), ord("4")]) == [ord("1"), ord("2"), ord("3")]
    assert grammar.accept_tokens("r", [EOS])
    grammar.rollback(3)
    assert written(backend, grammar, lambda _: DIGITS) == "33333"


def test_grammar_of_a_client_has_no_bound(backend: Any) -> None:
    grammar = backend.compile_grammar(None, Compiler(**byte_tokenizer()).grammar("regex", "[0-9]{60}"))
    assert len(written(backend, grammar, lambda _: DIGITS)) == 60

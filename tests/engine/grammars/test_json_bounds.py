"""Bounds of JSON beyond its schema: numbers fit their types, and whitespace cannot fill an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from tests.engine.tokenizer import EOS, byte_tokenizer
from tokka.engine.grammars.json_bounds import json_rules
from tokka.engine.grammars.limits import STATES, matcher_of, with_limit

LINE = byte_tokenizer()
TOKENIZER = LLTokenizer(LINE["tokenizer"], n_vocab=LINE["vocab_size"], eos_token=EOS)
BOUND = matcher_of(TOKENIZER, with_limit(f"start: json_text\n{json_rules()}", STATES))


def fits(text: str) -> bool:
    matcher = BOUND.deep_copy()
    raw = text.encode()
    return bool(matcher.try_consume_tokens([*raw]) == len(raw) and matcher.is_accepting())


@pytest.mark.parametrize(
    "text",
    [
        *("0", "-0", "7", "10", "9223372036854775807", "-9223372036854775807", "1000000000000000000"),
        *("0.1", "-0.5", "1.5", "123456789.12345678", "0.00000000000000001", "0.12345678901234567"),
        *("1e5", "1E-5", "1.5e+10", "-2.5e99", "0e0"),
        *("[]", "{}", '""', '{"a": 1, "b": [true, false, null]}', '{"a":{"b":["\\u00e4\\n",-1.5]}}'),
    ],
)
def test_json_of_ordinary_numbers_fits(text: str) -> None:
    assert fits(text)


@pytest.mark.parametrize(
    "text",
    [
        *("9223372036854775808", "99999999999999999999", "-9223372036854775808", "1" * 57, "01"),
        *("0.123456789012345678", "123456789.123456789", "1.", ".5", "1e100", "1e-100", "1.5e", "0." + "0" * 20 + "1"),
        *("1 2", "12 34", "[1  ]", "[1,  2]", "{ }", "\n[1]", '{"a":\n1}', "[1 ]"),
    ],
)
def test_unbounded_json_does_not_fit(text: str) -> None:
    assert not fits(text)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(-1e15, 1e15).filter(lambda number: number == 0 or abs(number) > 1e-15)
    | st.text(max_size=8).filter(lambda text: "\x7f" not in text),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(_values, st.sampled_from([(",", ":"), (", ", ": ")]), st.booleans())
def test_json_of_python_fits(value: Any, separators: tuple[str, str], ascii_only: bool) -> None:
    assert fits(json.dumps(value, separators=separators, ensure_ascii=ascii_only))


@pytest.mark.parametrize("prefix", ["", "-"])
@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"minimum": 0},
        {"maximum": 0.7},
        {"exclusiveMinimum": 0},
        {"exclusiveMaximum": 0},
        {"exclusiveMinimum": 0, "maximum": 1},
        {"exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"minimum": -1, "maximum": 1},
        {"exclusiveMinimum": -2.5, "exclusiveMaximum": -2.25},
    ],
    ids=str,
)
def test_number_of_zeros_ends_whatever_bounds_it(bounds: dict[str, float], prefix: str) -> None:
    schema = json.dumps({"type": "number", **bounds})
    both = [LLMatcher(TOKENIZER, LLMatcher.grammar_from_json_schema(schema)), BOUND.deep_copy()]
    text = ""
    # Acts like a model that prefers zeros.
    wanted = [*prefix, *"0.123456789-"]
    while not all(matcher.is_accepting() for matcher in both) or len(text) < 3:
        digit = next((one for one in wanted if all(m.deep_copy().consume_token(ord(one)) for m in both)), None)
        if digit is None:
            break
        for matcher in both:
            matcher.consume_token(ord(digit))
        text += digit
        wanted = list("0.123456789-")
        assert len(text) < 60, text
    assert all(matcher.is_accepting() for matcher in both), text

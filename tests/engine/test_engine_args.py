"""--engine-arg NAME=VALUE: typed by its value, checked against the engine's own options."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.engine.engine_args import parse_engine_args, parse_pairs
from tokka.engine.fake import FakeOptions
from tokka.errors import ConfigurationError


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a=1.5", {"a": 1.5}),
        ("a=true", {"a": True}),
        ("a=null", {"a": None}),
        ("a=text", {"a": "text"}),
        ('a="1"', {"a": "1"}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ('a={"x": [1]}', {"a": {"x": [1]}}),
        ("max-model-len=5", {"max_model_len": 5}),
        (" a =1", {"a": 1}),
        ("a=b-c", {"a": "b-c"}),
    ],
)
def test_engine_arg_value_is_parsed_as_json_when_possible(pair: str, expected: dict[str, Any]) -> None:
    assert parse_pairs([pair]) == expected


def test_the_last_of_two_values_wins() -> None:
    assert parse_pairs(["a=1", "a=2"]) == {"a": 2}


def test_options_are_filled_from_the_pairs() -> None:
    options = parse_engine_args(FakeOptions, ["token-delay-s=0.5", "answer=Moi", "max_model_len=64"])
    assert options == FakeOptions(token_delay_s=0.5, answer="Moi", max_model_len=64)


def test_without_pairs_the_defaults_stand() -> None:
    assert parse_engine_args(FakeOptions, []) == FakeOptions()


def test_a_whole_number_will_do_for_seconds() -> None:
    assert parse_engine_args(FakeOptions, ["token_delay_s=2"]).token_delay_s == 2.0


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"--engine-arg colour: no such option.*token_delay_s"):
        parse_engine_args(FakeOptions, ["colour=blue"])


@pytest.mark.parametrize(
    "pair",
    ["max_model_len=long", "max_model_len=1.5", "max_model_len=true", "token_delay_s=soon", "token_delay_s=true"],
)
def test_a_value_of_the_wrong_type_is_named(pair: str) -> None:
    name = pair.partition("=")[0]
    with pytest.raises(ConfigurationError, match=f"--engine-arg {name}: .* is not a"):
        parse_engine_args(FakeOptions, [pair])


def test_an_answer_that_looks_like_a_number_is_still_a_text() -> None:
    assert parse_engine_args(FakeOptions, ["answer=42"]).answer == "42"

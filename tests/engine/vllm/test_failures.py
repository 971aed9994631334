"""The engine's ends of a request in our words."""

from __future__ import annotations

from tokka.core import Constraint
from tokka.engine.vllm.failures import EndedByEngine, in_our_words
from tokka.errors import EngineError


def test_a_constraint_that_ends_a_request_is_named_and_not_tried_again() -> None:
    # That of a strict function is in no field of the sampling.
    error = in_our_words(EndedByEngine("error"), Constraint("calls", "{}", "tools"))
    assert isinstance(error, EngineError)
    assert error.param == "tools"
    assert "'tools' became too complex" in error.message
    assert error.headers() == {"x-should-retry": "false"}


def test_without_one_it_is_the_engines_own_reason() -> None:
    error = in_our_words(EndedByEngine("error"))
    assert isinstance(error, EngineError)
    assert (error.param, error.headers()) == (None, {})

"""Sampling defaults of a model: valid values are kept, impossible values are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.engine.vllm.start.model_defaults import model_defaults
from tokka.errors import StartupError


def test_model_defaults_keep_only_fields_that_requests_can_omit() -> None:
    found = {"temperature": 0.6, "top_k": 20, "top_p": 1, "max_tokens": 512, "min_p": None, "presence_penalty": 1.5}
    assert model_defaults(found) == {"temperature": 0.6, "top_k": 20, "top_p": 1, "max_tokens": 512}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("temperature", "hot", "temperature 'hot'"),
        ("temperature", -1, "temperature -1"),
        ("temperature", float("nan"), "temperature nan"),
        ("top_p", 0, "top_p 0"),
        ("top_p", 2, "top_p 2"),
        ("top_k", 1.5, "top_k 1.5"),
        ("repetition_penalty", 0, "repetition_penalty 0"),
        ("max_tokens", 0, "max_new_tokens 0"),
        ("max_tokens", True, "max_new_tokens True"),
    ],
)
def test_impossible_model_default_is_named(name: str, value: Any, told: str) -> None:
    with pytest.raises(StartupError, match="generation_config") as refused:
        model_defaults({name: value})
    assert told in str(refused.value)
    assert "--engine-arg generation_config=vllm" in str(refused.value)

"""Fields of vLLM that Tokka does not use: neutral values change nothing, others are refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tokka.errors import InvalidRequest, UnsupportedParameter
from tokka.protocol.chat import ChatRequest
from tokka.protocol.completions import CompletionRequest
from tokka.protocol.generation import GenerationFields
from tokka.protocol.validation import validated
from tokka.protocol.vllm_fields import Neutral

BASES: list[tuple[type[GenerationFields], dict[str, Any]]] = [
    (ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "Hei"}]}),
    (CompletionRequest, {"model": "m", "prompt": "Hei"}),
]
ROWS = [(model, base, name, row) for model, base in BASES for name, row in model.neutral.items()]


def meaning(model: type[GenerationFields], body: dict[str, Any]) -> Any:
    parsed = validated(model, json.dumps(body).encode()).parsed()
    return replace(parsed.request, id=""), parsed.form


@pytest.mark.parametrize(("model", "base", "name", "row"), ROWS)
def test_neutral_value_is_as_if_absent(
    model: type[GenerationFields], base: dict[str, Any], name: str, row: Neutral
) -> None:
    for value in (None, *row.values):
        assert meaning(model, {**base, name: value}) == meaning(model, base)


@pytest.mark.parametrize(("model", "base", "name", "row"), ROWS)
def test_other_value_is_refused_with_the_reason(
    model: type[GenerationFields], base: dict[str, Any], name: str, row: Neutral
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validated(model, json.dumps({**base, name: {"other": 1}}).encode())
    assert refused.value.param == name
    if row.is_unknown:
        assert "Unrecognized" in refused.value.message
    else:
        assert isinstance(refused.value, UnsupportedParameter)
        assert row.reason in refused.value.message


@pytest.mark.parametrize(("name", "value"), [("use_beam_search", 0), ("length_penalty", True)])
def test_value_of_another_type_is_not_neutral(name: str, value: Any) -> None:
    for model, base in BASES:
        with pytest.raises(UnsupportedParameter):
            validated(model, json.dumps({**base, name: value}).encode())


@pytest.mark.parametrize("fields", [{"tool_choice": "none", "parallel_tool_calls": True}, {"top_logprobs": 0}])
def test_chat_takes_the_defaults_of_vllm(fields: dict[str, Any]) -> None:
    model, base = BASES[0]
    assert meaning(model, {**base, **fields}) == meaning(model, base)

"""Arithmetic over config.json, held against models whose numbers are known."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.engine.sizing import attention_heads, check_tensor_parallel, context_length, kv_bytes_per_token

# BLOOM's names, and no context length: ALiBi has none.
PORO_34B = {"model_type": "bloom", "hidden_size": 7168, "n_layer": 54, "n_head": 56, "torch_dtype": "bfloat16"}
SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}


@pytest.mark.parametrize(
    ("config", "dtype", "expected"),
    [
        pytest.param(PORO_34B, "auto", 2 * 54 * 7168 * 2, id="poro-34b"),
        pytest.param(SMOLLM2_135M, "auto", 2 * 30 * 3 * 64 * 2, id="smollm2-135m"),
        pytest.param(SMOLLM2_135M, "float32", 2 * 30 * 3 * 64 * 4, id="smollm2-135m in float32"),
        pytest.param(GPT2, "auto", 2 * 12 * 768 * 2, id="gpt2, no dtype declared"),
        pytest.param({**GPT2, "torch_dtype": "float32"}, "auto", 2 * 12 * 768 * 4, id="declared float32"),
        pytest.param({**GPT2, "dtype": "float32"}, "bfloat16", 2 * 12 * 768 * 2, id="asked for bfloat16"),
    ],
)
def test_kv_cache_per_token(config: dict[str, Any], dtype: str, expected: int) -> None:
    assert kv_bytes_per_token(config, dtype) == expected


@pytest.mark.parametrize("missing", ["hidden_size", "n_layer", "n_head"])
def test_kv_cache_per_token_is_unknown_where_the_config_does_not_say(missing: str) -> None:
    config = {name: value for name, value in PORO_34B.items() if name != missing}
    assert kv_bytes_per_token(config, "auto") is None


@pytest.mark.parametrize(("config", "heads"), [(PORO_34B, 56), (SMOLLM2_135M, 9), ({}, None)])
def test_attention_heads_go_by_several_names(config: dict[str, Any], heads: int | None) -> None:
    assert attention_heads(config) == heads


@pytest.mark.parametrize(("config", "length"), [(PORO_34B, 2048), (SMOLLM2_135M, 8192), (GPT2, 1024)])
def test_context_length_is_the_declared_one_or_2048(config: dict[str, Any], length: int) -> None:
    assert context_length(config) == length


@pytest.mark.parametrize("size", [1, 2, 4, 7, 8, 14, 28, 56])
def test_poro_splits_over_the_divisors_of_its_heads(size: int) -> None:
    assert check_tensor_parallel(PORO_34B, size) is None


@pytest.mark.parametrize("size", [3, 16, 112])
def test_a_size_that_does_not_divide_the_heads_is_answered_with_those_that_do(size: int) -> None:
    reason = check_tensor_parallel(PORO_34B, size)
    assert reason is not None
    assert f"{size} devices" in reason
    assert reason.endswith("valid sizes are 1, 2, 4, 7, 8, 14, 28, 56")


def test_an_unknown_number_of_heads_is_left_to_the_engine() -> None:
    assert check_tensor_parallel({}, 3) is None

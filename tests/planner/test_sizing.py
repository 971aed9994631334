"""Sizes computed from config.json, compared with the known figures of models."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.errors import ConfigurationError
from tokka.planner.model_config import ModelConfig
from tokka.planner.parameters import count_parameters
from tokka.planner.presets import find_preset
from tokka.planner.sizing import check_tensor_parallel, kv_bytes_per_token, measure

# Uses BLOOM's names, and has no context length, since ALiBi needs none.
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
    assert kv_bytes_per_token(ModelConfig.of(config), dtype) == expected


@pytest.mark.parametrize("missing", ["hidden_size", "n_layer", "n_head"])
def test_kv_cache_per_token_is_unknown_where_the_config_does_not_say(missing: str) -> None:
    config = {name: value for name, value in PORO_34B.items() if name != missing}
    assert kv_bytes_per_token(ModelConfig.of(config), "auto") is None


@pytest.mark.parametrize(("config", "heads"), [(PORO_34B, 56), (SMOLLM2_135M, 9), ({}, None)])
def test_attention_heads_go_by_several_names(config: dict[str, Any], heads: int | None) -> None:
    assert ModelConfig.of(config).heads == heads


@pytest.mark.parametrize(("config", "length"), [(PORO_34B, 2048), (SMOLLM2_135M, 8192), (GPT2, 1024)])
def test_context_length_is_the_declared_one_or_2048(config: dict[str, Any], length: int) -> None:
    assert ModelConfig.of(config).context_length == length


@pytest.mark.parametrize("size", [1, 2, 4, 7, 8, 14, 28, 56])
def test_poro_splits_over_the_divisors_of_its_heads(size: int) -> None:
    assert check_tensor_parallel(ModelConfig.of(PORO_34B), size) is None


@pytest.mark.parametrize("size", [3, 16, 112])
def test_invalid_tensor_parallel_size_gets_the_valid_sizes(size: int) -> None:
    reason = check_tensor_parallel(ModelConfig.of(PORO_34B), size)
    assert reason is not None
    assert f"{size} devices" in reason
    assert reason.endswith("valid sizes are 1, 2, 4, 7, 8, 14, 28, 56")


def test_an_unknown_number_of_heads_is_left_to_the_engine() -> None:
    assert check_tensor_parallel(ModelConfig.of({}), 3) is None


QWEN_05B = {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 896, "intermediate_size": 4864}
PYTHIA_69B = {
    "model_type": "gpt_neox",
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 50432,
    "torch_dtype": "float16",
}
BLOOM_7B1 = {"model_type": "bloom", "n_embed": 4096, "n_layer": 30, "num_attention_heads": 32, "vocab_size": 250880}


def preset_config(name: str) -> dict[str, Any]:
    preset = find_preset(name)
    assert preset is not None
    return dict(preset.config)


@pytest.mark.parametrize(
    ("config", "size", "reason"),
    [
        pytest.param(QWEN_05B, 7, "2 KV heads can be neither split nor copied evenly", id="kv heads"),
        pytest.param(
            {**PORO_34B, "vocab_size": 128000}, 7, "vocabulary of 128000 cannot be split", id="vocabulary as it is"
        ),
        pytest.param(
            {**PORO_34B, "vocab_size": 127990}, 7, "vocabulary of 127990 (padded to 128000)", id="vocabulary padded"
        ),
        pytest.param(
            {"num_attention_heads": 32, "hidden_size": 4096, "intermediate_size": 11000},
            16,
            "feed-forward layers of 11000",
            id="feed-forward",
        ),
    ],
)
def test_tensor_parallel_error_names_the_indivisible_part(config: dict[str, Any], size: int, reason: str) -> None:
    problem = check_tensor_parallel(ModelConfig.of(config), size)
    assert problem is not None
    assert problem.startswith(reason)


def test_groups_of_a_quantization_are_not_cut() -> None:
    # Known from practice: with groups of 128, GPTQ and AWQ versions of this model split over at most 4 devices
    # (29568 = 231 * 128).
    config = preset_config("Qwen2.5-72B-Instruct")
    assert check_tensor_parallel(ModelConfig.of(config), 8) is None
    assert "groups of 128" in str(check_tensor_parallel(ModelConfig.of(config), 8, group=128))


def test_kv_heads_are_copied_when_devices_outnumber_them() -> None:
    size = measure(ModelConfig.of(preset_config("Qwen2.5-7B-Instruct")))
    per_head = 28 * 2 * 128 * 2
    assert [size.kv_bytes_on_device(devices) for devices in (1, 2, 4, 28)] == [
        4 * per_head,
        2 * per_head,
        per_head,
        per_head,
    ]


def test_poro_34b() -> None:
    size = measure(ModelConfig.of(preset_config("Poro-34B")))
    assert f"{size.weight_bytes / 2**30:.1f}" == "63.7"
    assert size.kv_bytes_per_token == 2 * 54 * 7168 * 2
    assert f"{size.kv_bytes_per_token / 2**20:.2f}" == "1.48"
    assert size.max_model_len == 2048


@pytest.mark.parametrize(
    ("config", "published"),
    [
        pytest.param(PYTHIA_69B, 6_857_302_016, id="pythia-6.9b"),
        pytest.param(BLOOM_7B1, 7_069_016_064, id="bloom-7b1"),
        pytest.param(preset_config("Llama-3.1-8B-Instruct"), 8_030_261_248, id="llama-3.1-8b"),
        pytest.param(preset_config("Mistral-7B-Instruct-v0.3"), 7_248_023_552, id="mistral-7b-v0.3"),
        pytest.param(preset_config("Mixtral-8x7B-Instruct-v0.1"), 46_702_792_704, id="mixtral-8x7b"),
        pytest.param(preset_config("Qwen2.5-7B-Instruct"), 7_615_616_512, id="qwen2.5-7b"),
        pytest.param(preset_config("gemma-2-2b-it"), 2_614_341_888, id="gemma-2-2b"),
    ],
)
def test_parameters_are_counted_to_the_last_one(config: dict[str, Any], published: int) -> None:
    parameters = count_parameters(ModelConfig.of(config))
    assert parameters is not None
    assert parameters.total == published


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Mixtral-8x7B-Instruct-v0.1", 12.9), ("Qwen3-30B-A3B", 3.3), ("Qwen3-235B-A22B", 22.0)],
)
def test_a_token_passes_some_experts_only(name: str, billions: float) -> None:
    parameters = count_parameters(ModelConfig.of(preset_config(name)))
    assert parameters is not None
    assert parameters.active / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_mxfp4_weights_are_as_large_as_published(name: str, gib: float) -> None:
    # The checkpoint sizes are from the model card (arXiv 2508.10925).
    assert measure(ModelConfig.of(preset_config(name))).weight_bytes / 2**30 == pytest.approx(gib, abs=0.05)


@pytest.mark.parametrize(
    ("quantization", "bits"), [("fp8", 8), ("int8", 8), ("int4", 4 + 20 / 128), ("awq", 4 + 20 / 128)]
)
def test_quantization_shrinks_matrices_and_leaves_embeddings(quantization: str, bits: float) -> None:
    config = preset_config("Llama-3.1-8B-Instruct")
    parameters = count_parameters(ModelConfig.of(config))
    assert parameters is not None
    expected = int(parameters.linear * bits / 8) + 2 * parameters.other
    assert measure(ModelConfig.of(config), quantization=quantization).weight_bytes == expected


@pytest.mark.parametrize(
    ("declared", "precision", "group"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "int4 in groups of 32", 32),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8", None),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, "int4 in groups of 64", 64),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8 in blocks", 128),
        ({"quant_method": "fp8"}, "fp8", None),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", None),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}},
            },
            "int4 in groups of 128",
            128,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
            None,
        ),
    ],
)
def test_the_quantization_a_config_declares(declared: dict[str, Any], precision: str, group: int | None) -> None:
    size = measure(
        ModelConfig.of({**preset_config("Llama-3.1-8B-Instruct"), "quantization_config": declared}), quantization="int8"
    )
    assert (size.precision, size.group) == (precision, group)


def test_weight_files_are_believed_before_the_config() -> None:
    assert measure(ModelConfig.of(PORO_34B), file_bytes=12345).weight_bytes == 12345


def test_fp8_halves_the_kv_cache() -> None:
    config = preset_config("Poro-34B")
    assert (
        2 * measure(ModelConfig.of(config), kv_cache_dtype="fp8").kv_bytes_per_token
        == measure(ModelConfig.of(config)).kv_bytes_per_token
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "does not say"),
        ({**SMOLLM2_135M, "model_type": "mamba9"}, "'mamba9'"),
        ({**preset_config("Poro-34B"), "quantization_config": {"quant_method": "exl9"}}, "exl9"),
    ],
)
def test_measure_fails_when_the_size_is_unknown(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        measure(ModelConfig.of(config))

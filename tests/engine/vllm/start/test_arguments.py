"""Each engine setting reaches vLLM's arguments. The engine reads the settings' own fields."""

from __future__ import annotations

from typing import Any

import pytest

from tokka.engine.vllm.start.arguments import VllmOptions, engine_arguments
from tokka.planner.lookup import find_model
from tokka.planner.model_folder import ModelFiles
from tokka.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")


def arguments_for(**settings: Any) -> dict[str, Any]:
    options = VllmOptions.from_settings(Settings(model="Poro-34B", **settings))
    return engine_arguments(options, "Poro-34B", ModelFiles(find_model("Poro-34B").config, None), cpu=False)


@pytest.mark.parametrize(
    ("setting", "value", "argument", "expected"),
    [
        ("served_model_name", ["poro"], "served_model_name", ["poro"]),
        ("dtype", "float16", "dtype", "float16"),
        ("quantization", "fp8", "quantization", "fp8"),
        ("max_model_len", 1024, "max_model_len", 1024),
        ("max_num_seqs", 3, "max_num_seqs", 3),
        ("tensor_parallel_size", 4, "tensor_parallel_size", 4),
        ("pipeline_parallel_size", 2, "pipeline_parallel_size", 2),
        ("data_parallel_size", 2, "data_parallel_size", 2),
        ("kv_cache_memory", "2GiB", "kv_cache_memory_bytes", 2 << 30),
        ("reasoning_parser", "qwen3", "reasoning_parser", "qwen3"),
        ("enforce_eager", True, "enforce_eager", True),
        ("engine_arg", ["block-size=32"], "block_size", 32),
    ],
)
def test_arguments_contain_setting(setting: str, value: Any, argument: str, expected: Any) -> None:
    assert arguments_for().get(argument) != expected
    assert arguments_for(**{setting: value})[argument] == expected


def test_options_do_not_show_keys() -> None:
    options = VllmOptions.from_settings(Settings(api_key=["a-secret-key"]))
    assert "a-secret-key" not in repr(options)

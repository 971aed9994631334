"""Each engine setting reaches vLLM's arguments. The engine reads the settings' own fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokka.engine.vllm.start.arguments import VllmOptions, engine_arguments
from tokka.planner.lookup import find_model
from tokka.planner.model_config import ModelConfig
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


BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
}


def embedding_arguments(*, cpu: bool, config: dict[str, Any] = BERT, **settings: Any) -> dict[str, Any]:
    options = VllmOptions.for_embedding_model(Settings(embedding_model="bert", **settings))
    return engine_arguments(options, "bert", ModelFiles(ModelConfig.of(config), 90 << 20), cpu=cpu)


def test_embedding_model_gets_its_own_arguments() -> None:
    found = embedding_arguments(
        cpu=False,
        tensor_parallel_size=4,
        dtype="float16",
        engine_arg=["block-size=32"],
        embedding_engine_arg=["trust_remote_code=true"],
    )
    assert (found["runner"], found["dtype"], found["tensor_parallel_size"]) == ("pooling", "auto", 1)
    assert (found.get("block_size"), found["trust_remote_code"]) == (None, True)
    # The main model takes nine tenths of a GPU.
    assert found["gpu_memory_utilization"] == 0.05


def test_encoder_on_a_cpu_takes_a_whole_text_and_little_memory() -> None:
    found = embedding_arguments(cpu=True)
    assert (found["max_num_batched_tokens"], found["dtype"]) == (1024, "float32")
    assert found["kv_cache_memory_bytes"] == 64 << 20
    assert embedding_arguments(cpu=True, config={**BERT, "torch_dtype": "bfloat16"})["dtype"] == "auto"


@pytest.mark.parametrize(
    ("architecture", "is_encoder"),
    [
        ("BertModel", True),
        ("XLMRobertaModel", True),
        ("BertForSequenceClassification", True),
        ("LlamaForCausalLM", False),
        ("GPT2LMHeadModel", False),
        ("T5ForConditionalGeneration", False),
        ("Unknown", False),
    ],
)
def test_architecture_tells_an_encoder(architecture: str, is_encoder: bool) -> None:
    assert ModelConfig.of({"architectures": [architecture]}).is_encoder is is_encoder


def test_hub_is_needed_if_one_model_is_on_it() -> None:
    assert VllmOptions.from_settings(Settings()).stays_offline
    assert not VllmOptions.from_settings(Settings(embedding_model="org/embedder")).stays_offline
    assert not VllmOptions.for_embedding_model(Settings(model="org/chat", embedding_model="/")).stays_offline


def test_name_of_the_embedded_embedding_model_is_its_folder() -> None:
    options = VllmOptions.from_settings(Settings(model="all-MiniLM-L6-v2"))
    assert options.model is not None
    assert (Path(options.model) / "config.json").exists()
    assert options.stays_offline

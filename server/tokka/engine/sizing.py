"""Arithmetic over a model's config.json: KV cache per token, valid tensor-parallel sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BYTES_OF_DTYPE = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config that describes the language model; models of several media nest it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def attention_heads(config: Mapping[str, Any]) -> int | None:
    return _first(config, "num_attention_heads", "n_head", "num_heads")


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int | None:
    """Return the bytes of KV cache one token takes over all layers, or None where the config does not say.

    Two tensors (key, value) of `kv_heads * head_dim` values in each layer.
    """
    config = language_part(config)
    heads = attention_heads(config)
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    if not (heads and layers and hidden):
        return None
    kv_heads = _first(config, "num_key_value_heads", "num_kv_heads") or heads
    head_dim = _first(config, "head_dim") or hidden // heads
    declared = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    width = _BYTES_OF_DTYPE.get(dtype if dtype != "auto" else str(declared), 2)
    return 2 * layers * kv_heads * head_dim * width


def context_length(config: Mapping[str, Any]) -> int:
    """Return the context length the config declares; 2048 where it does not, as vLLM assumes."""
    config = language_part(config)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) == "yarn":
        original = _first(rope, "original_max_position_embeddings") or 0
        return max(int(original * float(rope.get("factor", 1))), _first(config, "max_position_embeddings") or 0)
    return _first(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length") or 2048


def check_tensor_parallel(config: Mapping[str, Any], size: int) -> str | None:
    """Return why this size cannot split the model, or None if it can."""
    heads = attention_heads(language_part(config))
    if size > 1 and heads and heads % size:
        valid = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        return f"{heads} attention heads cannot be split over {size} devices; valid sizes are {', '.join(valid)}"
    return None

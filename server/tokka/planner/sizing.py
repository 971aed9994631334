"""Computes weights, KV cache per token and valid tensor-parallel sizes from a model's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokka.errors import ConfigurationError
from tokka.planner.parameters import (
    FAMILIES,
    Parameters,
    count_parameters,
    expert_count,
    expert_size,
    first_int,
    inner_size,
    language_part,
    with_family_defaults,
)
from tokka.planner.precision import BYTES_OF_DTYPE, Precision, dtype_of, precision_of

# vLLM pads the vocabulary to a multiple of this, and then needs equal parts (vocab_parallel_embedding.py).
_VOCABULARY_STEP = 64


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The sizes of a model that determine its layout."""

    # None if the family is unknown and the files give the size.
    parameters: Parameters | None
    # How the weights are stored, for people.
    precision: str
    weight_bytes: int
    layers: int
    kv_heads: int
    # Bytes of key and value of one head, in one layer, for one token.
    kv_bytes_of_head: int
    max_model_len: int
    # Points in which this estimate is coarser than the engine.
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    group: int | None

    @property
    def kv_bytes_per_token(self) -> int:
        return self.kv_bytes_on_device(1)

    def kv_bytes_on_device(self, size: int) -> int:
        """Return a token's bytes on each of `size` devices. With more devices than KV heads, the heads are copied."""
        return self.layers * max(1, self.kv_heads // size) * self.kv_bytes_of_head

    def problem(self, size: int) -> str | None:
        return check_tensor_parallel(self.config, size, self.group)


def measure(
    config: Mapping[str, Any],
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
    max_model_len: int | None = None,
    file_bytes: int | None = None,
) -> ModelSize:
    """Return a model's sizes. `file_bytes`: bytes of the weights in local files, if there are any.

    Raises ConfigurationError if the config is incomplete, or its family or quantization is unknown.
    """
    text = with_family_defaults(language_part(config))
    heads, layers, head_dim = attention_heads(text), _layers(text), _head_dim(text)
    if not (heads and layers and head_dim):
        raise ConfigurationError(
            "config.json does not say the number of layers, the number of attention heads or the hidden size; give a"
            " complete config.json"
        )
    dtype = dtype_of(text if text.get("dtype") or text.get("torch_dtype") else config, dtype)
    width = 1 if kv_cache_dtype.startswith("fp8") else BYTES_OF_DTYPE.get(dtype, 2)
    parameters = count_parameters(config)
    precision, weight_bytes = _weights(config, text, parameters, dtype, quantization, file_bytes)
    declared = context_length(config)
    return ModelSize(
        parameters=parameters,
        precision=precision.name if precision else "as in the files",
        weight_bytes=weight_bytes,
        layers=layers,
        kv_heads=kv_heads(text) or heads,
        kv_bytes_of_head=2 * head_dim * width,
        max_model_len=max_model_len or declared,
        notes=tuple(_notes(config, text, max_model_len or declared)),
        config=config,
        group=precision.group if precision else None,
    )


def _weights(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    parameters: Parameters | None,
    dtype: str,
    quantization: str | None,
    file_bytes: int | None,
) -> tuple[Precision | None, int]:
    # A model that is quantized while loading is smaller than its files.
    shrinks = quantization is not None and "quantization_config" not in config
    if file_bytes and not (shrinks and parameters):
        return None, file_bytes
    if parameters is None:
        raise ConfigurationError(
            f"the parameters of {str(text.get('model_type'))[:40]!r} models cannot be counted from config.json; known"
            f" families are {', '.join(FAMILIES)}; give a folder that holds the weights to have them measured"
        )
    precision = precision_of(config, dtype, quantization)
    return precision, weight_bytes_of(parameters, precision, BYTES_OF_DTYPE.get(dtype, 2))


def weight_bytes_of(parameters: Parameters, precision: Precision, width: int) -> int:
    """Return the bytes of all weights. `width`: bytes of an unquantized parameter."""
    linear_bits = 8 * width if precision.experts_only else precision.bits
    return int((parameters.linear * linear_bits + parameters.experts * precision.bits) / 8) + parameters.other * width


def _notes(config: Mapping[str, Any], text: Mapping[str, Any], max_model_len: int) -> list[str]:
    notes = []
    window = first_int(text, "sliding_window")
    if window and window < max_model_len and text.get("use_sliding_window", True):
        notes.append(
            f"layers with a sliding window of {window} tokens are counted as full attention; the engine may hold more"
            " sequences"
        )
    if "vision_config" in config:
        notes.append("the image encoder is counted as a plain vision transformer; its input cache is not counted")
    return notes


def attention_heads(config: Mapping[str, Any]) -> int | None:
    return first_int(config, "num_attention_heads", "n_head", "num_heads")


def kv_heads(config: Mapping[str, Any]) -> int | None:
    return first_int(config, "num_key_value_heads", "num_kv_heads") or attention_heads(config)


def _layers(config: Mapping[str, Any]) -> int | None:
    return first_int(config, "num_hidden_layers", "n_layer", "num_layers")


def _head_dim(config: Mapping[str, Any]) -> int | None:
    hidden, heads = first_int(config, "hidden_size", "n_embed", "n_embd", "d_model"), attention_heads(config)
    if not (hidden and heads):
        return None
    return first_int(config, "head_dim") or hidden // heads


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int | None:
    """Return the KV cache bytes of one token over all layers, or None if the config is incomplete.

    Each layer holds two tensors (key, value) of `kv_heads * head_dim` values.
    """
    config = with_family_defaults(language_part(config))
    heads, layers, head_dim = kv_heads(config), _layers(config), _head_dim(config)
    if not (heads and layers and head_dim):
        return None
    return 2 * layers * heads * head_dim * BYTES_OF_DTYPE.get(dtype_of(config, dtype), 2)


def context_length(config: Mapping[str, Any]) -> int:
    """Return the context length that the config declares, or 2048, which vLLM assumes without one."""
    config = with_family_defaults(language_part(config))
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) == "yarn":
        original = first_int(rope, "original_max_position_embeddings") or 0
        return max(int(original * float(rope.get("factor", 1))), first_int(config, "max_position_embeddings") or 0)
    return first_int(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length") or 2048


def check_tensor_parallel(config: Mapping[str, Any], size: int, group: int | None = None) -> str | None:
    """Return why the model cannot be split into this size, or None. `group`: inputs that share a quantization scale.

    Makes vLLM's checks: equal shares of heads, KV heads (or equal copies), vocabulary and feed-forward layers.
    """
    text = with_family_defaults(language_part(config))
    heads = attention_heads(text)
    problem = _split_problem(text, size, group)
    if problem is None or not heads:
        return problem
    valid = [str(n) for n in range(1, heads + 1) if _split_problem(text, n, group) is None]
    return f"{problem} over {size} devices; valid sizes are {', '.join(valid)}"


def _split_problem(text: Mapping[str, Any], size: int, group: int | None) -> str | None:
    heads, kv = attention_heads(text), kv_heads(text)
    if size == 1 or not (heads and kv):
        return None
    if heads % size:
        return f"{heads} attention heads cannot be split"
    if kv % size and size % kv:
        return f"{kv} KV heads can be neither split nor copied evenly"
    vocabulary = first_int(text, "vocab_size") or 0
    padded = -(-vocabulary // _VOCABULARY_STEP) * _VOCABULARY_STEP
    if padded % size:
        padding = f" (padded to {padded})" if padded > vocabulary else ""
        return f"vocabulary of {vocabulary}{padding} cannot be split"
    for inner in _inner_sizes(text):
        if inner % size:
            return f"feed-forward layers of {inner} cannot be split"
        if group and inner % (size * group):
            return f"feed-forward layers of {inner}, quantized in groups of {group}, cannot be split"
    return None


def _inner_sizes(text: Mapping[str, Any]) -> list[int]:
    hidden = first_int(text, "hidden_size", "n_embed", "n_embd", "d_model")
    if not hidden:
        return []
    experts = [expert_size(text)] if expert_count(text) else []
    only_experts = experts and not text.get("mlp_only_layers") and (first_int(text, "decoder_sparse_step") or 1) == 1
    return experts if only_experts else [*experts, inner_size(text, hidden)]

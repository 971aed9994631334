"""Computes weights, KV cache per token and valid tensor-parallel sizes from a model's config.json."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.errors import ConfigurationError
from tokka.planner.model_config import ModelConfig
from tokka.planner.parameters import FAMILIES, Parameters, count_parameters
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
    config: ModelConfig
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
    config: ModelConfig,
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
    kv_heads, layers, head_dim = config.kv_heads, config.layers, config.head_dim
    if not (kv_heads and layers and head_dim):
        raise ConfigurationError(
            "config.json does not say the number of layers, the number of attention heads or the hidden size; give a"
            " complete config.json"
        )
    dtype = dtype_of(config, dtype)
    width = 1 if kv_cache_dtype.startswith("fp8") else BYTES_OF_DTYPE.get(dtype, 2)
    parameters = count_parameters(config)
    precision, weight_bytes = _weights(config, parameters, dtype, quantization, file_bytes)
    max_model_len = max_model_len or config.context_length
    return ModelSize(
        parameters=parameters,
        precision=precision.name if precision else "as in the files",
        weight_bytes=weight_bytes,
        layers=layers,
        kv_heads=kv_heads,
        kv_bytes_of_head=2 * head_dim * width,
        max_model_len=max_model_len,
        notes=tuple(_notes(config, max_model_len)),
        config=config,
        group=precision.group if precision else None,
    )


def _weights(
    config: ModelConfig,
    parameters: Parameters | None,
    dtype: str,
    quantization: str | None,
    file_bytes: int | None,
) -> tuple[Precision | None, int]:
    # A model that is quantized while loading is smaller than its files.
    shrinks = quantization is not None and config.quantization is None
    if file_bytes and not (shrinks and parameters):
        return None, file_bytes
    if parameters is None:
        raise ConfigurationError(
            f"the parameters of {config.model_type[:40]!r} models cannot be counted from config.json; known"
            f" families are {', '.join(FAMILIES)}; give a folder that holds the weights to have them measured"
        )
    precision = precision_of(config, dtype, quantization)
    return precision, weight_bytes_of(parameters, precision, BYTES_OF_DTYPE.get(dtype, 2))


def weight_bytes_of(parameters: Parameters, precision: Precision, width: int) -> int:
    """Return the bytes of all weights. `width`: bytes of an unquantized parameter."""
    linear_bits = 8 * width if precision.experts_only else precision.bits
    return int((parameters.linear * linear_bits + parameters.experts * precision.bits) / 8) + parameters.other * width


def _notes(config: ModelConfig, max_model_len: int) -> list[str]:
    notes = []
    window = config.sliding_window
    if window and window < max_model_len:
        notes.append(
            f"layers with a sliding window of {window} tokens are counted as full attention; the engine may hold more"
            " sequences"
        )
    if config.vision:
        notes.append("the image encoder is counted as a plain vision transformer; its input cache is not counted")
    return notes


def kv_bytes_per_token(config: ModelConfig, dtype: str) -> int | None:
    """Return the KV cache bytes of one token over all layers, or None if the config is incomplete.

    Each layer holds two tensors (key, value) of `kv_heads * head_dim` values.
    """
    if not (config.kv_heads and config.layers and config.head_dim):
        return None
    return 2 * config.layers * config.kv_heads * config.head_dim * BYTES_OF_DTYPE.get(dtype_of(config, dtype), 2)


def check_tensor_parallel(config: ModelConfig, size: int, group: int | None = None) -> str | None:
    """Return why the model cannot be split into this size, or None. `group`: inputs that share a quantization scale.

    Makes vLLM's checks: equal shares of heads, KV heads (or equal copies), vocabulary and feed-forward layers.
    """
    problem = _split_problem(config, size, group)
    if problem is None or not config.heads:
        return problem
    valid = [str(n) for n in range(1, config.heads + 1) if _split_problem(config, n, group) is None]
    return f"{problem} over {size} devices; valid sizes are {', '.join(valid)}"


def _split_problem(config: ModelConfig, size: int, group: int | None) -> str | None:
    heads, kv = config.heads, config.kv_heads
    if size == 1 or not (heads and kv):
        return None
    if heads % size:
        return f"{heads} attention heads cannot be split"
    if kv % size and size % kv:
        return f"{kv} KV heads can be neither split nor copied evenly"
    vocabulary = config.vocabulary or 0
    padded = -(-vocabulary // _VOCABULARY_STEP) * _VOCABULARY_STEP
    if padded % size:
        padding = f" (padded to {padded})" if padded > vocabulary else ""
        return f"vocabulary of {vocabulary}{padding} cannot be split"
    for inner in _inner_sizes(config):
        if inner % size:
            return f"feed-forward layers of {inner} cannot be split"
        if group and inner % (size * group):
            return f"feed-forward layers of {inner}, quantized in groups of {group}, cannot be split"
    return None


def _inner_sizes(config: ModelConfig) -> list[int]:
    """Return the sizes of the feed-forward layers, of experts and dense ones."""
    has_dense = not config.experts or config.moe_layers != (config.layers or 0)
    sizes = [config.expert_inner if config.experts else None, config.inner if has_dense else None]
    return [size for size in sizes if size is not None] if config.hidden else []

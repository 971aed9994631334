"""Computes the bits per weight of a model's matrices, including quantization scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokka.errors import ConfigurationError
from tokka.planner.model_config import ModelConfig

BYTES_OF_DTYPE = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_SCALE_BITS = 16
# Default group size of GPTQ and AWQ.
_GROUP = 128


@dataclass(frozen=True, slots=True)
class Precision:
    """How the matrices are stored. Embeddings, output head, norms, biases and routers keep the model's dtype."""

    name: str
    bits: float
    # Only experts are quantized. Attention and dense feed-forward matrices keep the model's dtype.
    experts_only: bool = False
    # Number of inputs that share a scale. A device's part of a matrix must hold whole groups.
    group: int | None = None


_FP8 = Precision("fp8", 8)
_INT8 = Precision("int8", 8)
# 4 bits, and an 8-bit scale per 32 weights.
_MXFP4 = Precision("mxfp4", 4.25, experts_only=True)
# 4 bits, and a 32-bit scale per 64 weights.
_BITSANDBYTES = Precision("bitsandbytes 4-bit", 4.5)


def _grouped(bits: int, group: int) -> Precision:
    if group <= 0:
        return Precision(f"int{bits}", bits)
    # One scale and one zero point per group.
    return Precision(f"int{bits} in groups of {group}", bits + (_SCALE_BITS + bits) / group, group=group)


_INT4 = _grouped(4, _GROUP)
_BY_NAME = {
    "fp8": _FP8,
    "int8": _INT8,
    "int4": _INT4,
    "gptq": _INT4,
    "gptq_marlin": _INT4,
    "awq": _INT4,
    "awq_marlin": _INT4,
    "mxfp4": _MXFP4,
    "bitsandbytes": _BITSANDBYTES,
}


def dtype_of(config: ModelConfig, asked: str) -> str:
    """Return the dtype that a model runs in: `asked`, or the config's dtype if `asked` is "auto"."""
    return asked if asked != "auto" else config.dtype or "bfloat16"


def precision_of(config: ModelConfig, dtype: str, quantization: str | None) -> Precision:
    """Return how the matrices are stored. A quantization in the config wins over `quantization`.

    Raises ConfigurationError if the size of the quantization is unknown.
    """
    if config.quantization is not None:
        return _declared(config.quantization)
    if quantization is None:
        return Precision(dtype, 8 * BYTES_OF_DTYPE.get(dtype, 2))
    if quantization not in _BY_NAME:
        raise ConfigurationError(
            f"--quantization {quantization}: the size of its weights is unknown; choose one of {', '.join(_BY_NAME)}"
        )
    return _BY_NAME[quantization]


def _declared(declared: Mapping[str, Any]) -> Precision:
    method = str(declared.get("quant_method", "")).lower()
    match method:
        case "fp8" | "fbgemm_fp8":
            block = declared.get("weight_block_size")
            return Precision("fp8 in blocks", 8 + 32 / (block[0] * block[1]), group=block[1]) if block else _FP8
        case "gptq" | "awq" | "gptq_marlin" | "awq_marlin":
            bits = declared.get("bits") or declared.get("w_bit") or 4
            return _grouped(int(bits), int(declared.get("group_size") or declared.get("q_group_size") or _GROUP))
        case "bitsandbytes":
            return _INT8 if declared.get("load_in_8bit") else _BITSANDBYTES
        case "mxfp4":
            return _MXFP4
        case "compressed-tensors":
            return _compressed(declared)
        case _:
            raise ConfigurationError(
                f"the size of weights quantized by {method or 'an unnamed method'} is unknown; give a folder that"
                " holds the weights to have them measured"
            )


def _compressed(declared: Mapping[str, Any]) -> Precision:
    groups = declared.get("config_groups")
    first: Mapping[str, Any] = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = first.get("weights") or {}
    bits = int(weights.get("num_bits") or 16)
    if weights.get("type") == "float" and bits == 8:
        return _FP8
    return _grouped(bits, int(weights.get("group_size") or 0))

"""Counts a model's parameters from its config.json, matrix by matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameter counts of a model."""

    # Matrices of attention and dense feed-forward layers, which quantization shrinks.
    linear: int
    # Matrices of all experts.
    experts: int
    # Embeddings, output head, norms, biases, routers and encoders of other media, which keep the model's dtype.
    other: int
    # Parameters of the experts that a token does not use.
    idle: int

    @property
    def total(self) -> int:
        return self.linear + self.experts + self.other

    @property
    def active(self) -> int:
        return self.total - self.idle


@dataclass(frozen=True, slots=True)
class _Family:
    """Differences between model families that config.json does not state."""

    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    # The feed-forward layer has three matrices instead of two.
    gated: bool = True
    norms: int = 2
    # LayerNorm has a bias; RMSNorm does not.
    norm_bias: bool = False
    # A norm on each query head and key head.
    head_norms: bool = False
    embedding_norm: bool = False
    # A learnt attention sink, one logit per head.
    sinks: bool = False
    expert_bias: bool = False
    defaults: Mapping[str, int] | None = None


_GEMMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "mixtral": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen2_moe": _Family(qkv_bias=True),
    "qwen3": _Family(head_norms=True),
    "qwen3_moe": _Family(head_norms=True),
    "gemma": _Family(tied=True, defaults={"head_dim": 256}),
    "gemma2": _Family(tied=True, norms=4, defaults=_GEMMA),
    # The configs of its larger sizes omit values that equal the library's defaults.
    "gemma3_text": _Family(
        tied=True,
        norms=4,
        head_norms=True,
        defaults=_GEMMA | {"vocab_size": 262_208, "max_position_embeddings": 131_072},
    ),
    "gpt_oss": _Family(qkv_bias=True, out_bias=True, sinks=True, expert_bias=True),
    "bloom": _Family(
        tied=True, qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, norm_bias=True, embedding_norm=True
    ),
    "gpt_neox": _Family(qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, norm_bias=True),
}
FAMILIES = tuple(_FAMILIES)


def with_family_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a language model's config, completed with its family's defaults."""
    family = _FAMILIES.get(str(config.get("model_type")))
    return {**family.defaults, **config} if family and family.defaults else config


def first_int(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config that describes the language model; multimodal models nest it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def count_parameters(config: Mapping[str, Any]) -> Parameters | None:
    """Return the parameter counts, or None if the family is unknown or the config is incomplete."""
    text = with_family_defaults(language_part(config))
    family = _FAMILIES.get(str(text.get("model_type")))
    hidden = first_int(text, "hidden_size", "n_embed", "n_embd")
    layers = first_int(text, "num_hidden_layers", "n_layer")
    heads = first_int(text, "num_attention_heads", "n_head")
    vocabulary = first_int(text, "vocab_size")
    if not (family and hidden and layers and heads and vocabulary):
        return None
    attention, attention_other = _attention(text, family, hidden, heads)
    moe_layers = _moe_layers(text, layers)
    dense = _matrices(family) * hidden * inner_size(text, hidden)
    expert = _matrices(family) * hidden * expert_size(text)
    experts = expert_count(text)
    chosen = first_int(text, "num_experts_per_tok", "experts_per_token") or experts
    shared = _matrices(family) * hidden * (first_int(text, "shared_expert_intermediate_size") or 0)
    norm = hidden * (2 if family.norm_bias else 1)
    other = layers * (attention_other + family.norms * norm) + norm * (2 if family.embedding_norm else 1)
    other += moe_layers * _router(family, hidden, experts, expert_size(text), bool(shared))
    if family.mlp_bias or text.get("mlp_bias"):
        other += (layers - moe_layers) * ((_matrices(family) - 1) * inner_size(text, hidden) + hidden)
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", family.tied))
    other += vocabulary * hidden * (1 if tied else 2) + _vision_parameters(config, hidden)
    return Parameters(
        linear=layers * attention + (layers - moe_layers) * dense + moe_layers * shared,
        experts=moe_layers * experts * expert,
        other=other,
        idle=moe_layers * (experts - chosen) * expert,
    )


def inner_size(text: Mapping[str, Any], hidden: int) -> int:
    return first_int(text, "intermediate_size", "n_inner", "ffn_hidden_size") or 4 * hidden


def expert_size(text: Mapping[str, Any]) -> int:
    return first_int(text, "moe_intermediate_size", "intermediate_size") or 0


def expert_count(text: Mapping[str, Any]) -> int:
    return first_int(text, "num_local_experts", "num_experts") or 0


def _matrices(family: _Family) -> int:
    return 3 if family.gated else 2


def _attention(text: Mapping[str, Any], family: _Family, hidden: int, heads: int) -> tuple[int, int]:
    """Return one layer's parameter counts: in matrices, and in everything else."""
    head_dim = first_int(text, "head_dim") or hidden // heads
    queries = heads * head_dim
    keys = (first_int(text, "num_key_value_heads", "num_kv_heads") or heads) * head_dim
    bias = bool(text.get("attention_bias", False))
    other = (queries + 2 * keys if family.qkv_bias or bias else 0) + (hidden if family.out_bias or bias else 0)
    other += (2 * head_dim if family.head_norms else 0) + (heads if family.sinks else 0)
    return hidden * (2 * queries + 2 * keys), other


def _moe_layers(text: Mapping[str, Any], layers: int) -> int:
    if not expert_count(text):
        return 0
    dense = text.get("mlp_only_layers") or []
    step = first_int(text, "decoder_sparse_step") or 1
    return sum((layer + 1) % step == 0 and layer not in dense for layer in range(layers))


def _router(family: _Family, hidden: int, experts: int, inner: int, shared: bool) -> int:
    biases = experts + experts * (2 * inner + hidden) if family.expert_bias else 0
    return hidden * experts + biases + (hidden if shared else 0)


def _vision_parameters(config: Mapping[str, Any], hidden: int) -> int:
    """Return the parameters of the image encoder (ViT) and its projection to the language model, or 0 without one."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return 0
    width, layers = first_int(vision, "hidden_size"), first_int(vision, "num_hidden_layers")
    inner, patch = first_int(vision, "intermediate_size"), first_int(vision, "patch_size")
    if not (width and layers and inner and patch):
        return 0
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    places = ((first_int(vision, "image_size") or 0) // patch) ** 2
    return layers * block + (3 * patch * patch + places + 3) * width + width * hidden + width

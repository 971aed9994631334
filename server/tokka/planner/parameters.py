"""Counts a model's parameters from its config.json, matrix by matrix."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.planner.model_config import ModelConfig, VisionConfig


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


_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "mixtral": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen2_moe": _Family(qkv_bias=True),
    "qwen3": _Family(head_norms=True),
    "qwen3_moe": _Family(head_norms=True),
    "gemma": _Family(tied=True),
    "gemma2": _Family(tied=True, norms=4),
    "gemma3_text": _Family(tied=True, norms=4, head_norms=True),
    "gpt_oss": _Family(qkv_bias=True, out_bias=True, sinks=True, expert_bias=True),
    "bloom": _Family(
        tied=True, qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, norm_bias=True, embedding_norm=True
    ),
    "gpt_neox": _Family(qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, norm_bias=True),
}
FAMILIES = tuple(_FAMILIES)


def count_parameters(config: ModelConfig) -> Parameters | None:
    """Return the parameter counts, or None if the family is unknown or the config is incomplete."""
    family = _FAMILIES.get(config.model_type)
    hidden, layers, heads, inner = config.hidden, config.layers, config.heads, config.inner
    kv_heads, head_dim = config.kv_heads, config.head_dim
    if not (family and hidden and layers and heads and kv_heads and head_dim and inner and config.vocabulary):
        return None
    attention, attention_other = _attention(family, hidden, heads, kv_heads, head_dim, bias=config.attention_bias)
    matrices = 3 if family.gated else 2
    dense_layers, moe_layers = layers - config.moe_layers, config.moe_layers
    dense = matrices * hidden * inner
    expert = matrices * hidden * config.expert_inner
    shared = matrices * hidden * config.shared_expert_inner
    norm = hidden * (2 if family.norm_bias else 1)
    other = layers * (attention_other + family.norms * norm) + norm * (2 if family.embedding_norm else 1)
    other += moe_layers * _router(config, family, hidden)
    if family.mlp_bias or config.mlp_bias:
        other += dense_layers * ((matrices - 1) * inner + hidden)
    tied = family.tied if config.tied is None else config.tied
    other += config.vocabulary * hidden * (1 if tied else 2)
    other += _vision_parameters(config.vision, hidden) if config.vision else 0
    return Parameters(
        linear=layers * attention + dense_layers * dense + moe_layers * shared,
        experts=moe_layers * config.experts * expert,
        other=other,
        idle=moe_layers * (config.experts - config.chosen_experts) * expert,
    )


def _attention(
    family: _Family, hidden: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool
) -> tuple[int, int]:
    """Return one layer's parameter counts: in matrices, and in everything else."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    other = (queries + 2 * keys if family.qkv_bias or bias else 0) + (hidden if family.out_bias or bias else 0)
    other += (2 * head_dim if family.head_norms else 0) + (heads if family.sinks else 0)
    return hidden * (2 * queries + 2 * keys), other


def _router(config: ModelConfig, family: _Family, hidden: int) -> int:
    experts, inner = config.experts, config.expert_inner
    biases = experts + experts * (2 * inner + hidden) if family.expert_bias else 0
    return hidden * experts + biases + (hidden if config.shared_expert_inner else 0)


def _vision_parameters(vision: VisionConfig, hidden: int) -> int:
    """Return the parameters of the image encoder and its projection to the language model, 0 if they are unknown."""
    width, inner, patch = vision.hidden, vision.inner, vision.patch
    if not (width and vision.layers and inner and patch):
        return 0
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    places = (vision.image // patch) ** 2
    return vision.layers * block + (3 * patch * patch + places + 3) * width + width * hidden + width

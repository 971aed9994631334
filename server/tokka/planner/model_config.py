"""A model's config.json, read once: one name for each value, whatever the model's family calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# vLLM's context length for a config that declares none.
_CONTEXT_LENGTH = 2048
# Ends of architectures' names.
_GENERATES = ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")
_ENCODES = ("Model", "ForTextEncoding", "ForMaskedLM", "Classification", "RewardModeling")
_GEMMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
# Values that configs omit because they equal the library's defaults of the family.
_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gemma": {"head_dim": 256},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {"vocab_size": 262_208, "max_position_embeddings": 131_072},
}


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The image encoder (ViT). 0: the config does not say it."""

    hidden: int
    layers: int
    inner: int
    patch: int
    image: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The language model of a config.json, completed with its family's defaults. None: the config does not say it."""

    model_type: str
    # Size of a token's vector.
    hidden: int | None
    layers: int | None
    heads: int | None
    # Heads of keys and values; equal to `heads` unless the config says otherwise.
    kv_heads: int | None
    # Values per head.
    head_dim: int | None
    vocabulary: int | None
    # Size of a dense feed-forward layer.
    inner: int | None
    # Experts of a mixture, 0 without one; the experts that a token uses; the size of one.
    experts: int
    chosen_experts: int
    expert_inner: int
    shared_expert_inner: int
    # Layers with experts.
    moe_layers: int
    context_length: int
    # Tokens that a layer with a sliding window sees.
    sliding_window: int | None
    attention_bias: bool
    mlp_bias: bool
    # Whether the output head shares the weights of the embedding.
    tied: bool | None
    dtype: str | None
    # The declared quantization, as it is written.
    quantization: Mapping[str, Any] | None
    vision: VisionConfig | None
    # The model turns a text into vectors and generates nothing, as its architecture says.
    is_encoder: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a config.json. Never raises: values of wrong types count as missing."""
        nested = config.get("text_config")
        # Multimodal models nest their language model.
        part: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
        model_type = str(part.get("model_type"))
        text = {**_DEFAULTS.get(model_type, {}), **part}
        hidden = _int(text, "hidden_size", "n_embed", "n_embd", "d_model")
        layers = _int(text, "num_hidden_layers", "n_layer", "num_layers")
        heads = _int(text, "num_attention_heads", "n_head", "num_heads")
        experts = _int(text, "num_local_experts", "num_experts") or 0
        tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
        dtype = next((one for c in (text, config) if (one := c.get("dtype") or c.get("torch_dtype"))), None)
        quantization = config.get("quantization_config")
        return cls(
            model_type=model_type,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=_int(text, "num_key_value_heads", "num_kv_heads") or heads,
            head_dim=(_int(text, "head_dim") or hidden // heads) if hidden and heads else None,
            vocabulary=_int(text, "vocab_size"),
            inner=_int(text, "intermediate_size", "n_inner", "ffn_hidden_size") or (4 * hidden if hidden else None),
            experts=experts,
            chosen_experts=_int(text, "num_experts_per_tok", "experts_per_token") or experts,
            expert_inner=_int(text, "moe_intermediate_size", "intermediate_size") or 0,
            shared_expert_inner=_int(text, "shared_expert_intermediate_size") or 0,
            moe_layers=_moe_layers(text, layers or 0) if experts else 0,
            context_length=_context_length(text),
            sliding_window=_int(text, "sliding_window") if text.get("use_sliding_window", True) else None,
            attention_bias=bool(text.get("attention_bias")),
            mlp_bias=bool(text.get("mlp_bias")),
            tied=None if tied is None else bool(tied),
            dtype=None if dtype is None else str(dtype),
            quantization=quantization if isinstance(quantization, Mapping) else None,
            vision=_vision(config),
            is_encoder=_is_encoder(config.get("architectures")),
        )


def _int(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _moe_layers(text: Mapping[str, Any], layers: int) -> int:
    dense = text.get("mlp_only_layers")
    step = _int(text, "decoder_sparse_step") or 1
    is_dense = {layer for layer in dense if isinstance(layer, int)} if isinstance(dense, list) else set()
    return sum((layer + 1) % step == 0 and layer not in is_dense for layer in range(layers))


def _context_length(text: Mapping[str, Any]) -> int:
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) == "yarn":
        original, factor = _int(rope, "original_max_position_embeddings") or 0, rope.get("factor")
        stretched = int(original * factor) if isinstance(factor, int | float) else original
        return max(stretched, _int(text, "max_position_embeddings") or 0)
    return _int(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length") or _CONTEXT_LENGTH


def _is_encoder(architectures: Any) -> bool:
    """Return whether vLLM runs the first architecture that it knows by the end of its name as a pooling model."""
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    if not names or names[0].endswith(_GENERATES):
        return False
    return names[0].endswith(_ENCODES)


def _vision(config: Mapping[str, Any]) -> VisionConfig | None:
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return None
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "patch_size", "image_size")
    return VisionConfig(*(_int(vision, name) or 0 for name in names))

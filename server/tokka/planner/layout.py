"""Computes which tensor-parallel sizes fit devices of a given memory, and recommends one."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.planner.gpus import GIB
from tokka.planner.sizing import ModelSize

# Share of a device's memory for the engine: the default gpu_memory_utilization of vLLM 0.32. The driver and other
# processes use the rest.
MEMORY_SHARE = 0.92
# Bytes reserved on each device within that share: prefill activations, batch logits, CUDA graphs and collective
# buffers. vLLM measures them at start; this is a round estimate.
RESERVE_BYTES = 2 * GIB
# Tokens in a block of the KV cache. A sequence takes whole blocks.
_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Size:
    """One tensor-parallel size. Bytes are per device."""

    size: int
    # Why the model cannot be split into this size; None if it can.
    invalid: str | None
    weight_bytes: int
    # Memory left for the KV cache; negative if the weights alone do not fit.
    cache_bytes: int
    # Tokens that the KV cache holds.
    tokens: int
    # Full-length sequences that the KV cache holds.
    sequences: int

    @property
    def fits(self) -> bool:
        return self.invalid is None and self.sequences > 0

    @property
    def has_room(self) -> bool:
        """Whether the KV cache can be as large as the weights.

        A decoding step reads the weights once and the cache of every running sequence. If both take the same time,
        batching has reached half of its possible gain. With a smaller cache, reading the weights dominates.
        """
        return self.fits and self.cache_bytes >= self.weight_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """The evaluated tensor-parallel sizes, with a recommendation."""

    sizes: tuple[Size, ...]
    # The smallest size that holds the weights and one full-length sequence.
    least: Size | None
    # The smallest size with room for a batch, else the size that holds the most sequences.
    recommended: Size | None
    # Copies of the recommended size that the devices hold.
    copies: int
    idle: int
    reason: str


def lay_out(
    model: ModelSize,
    memory_bytes: int,
    count: int,
    *,
    memory_share: float = MEMORY_SHARE,
    cache_bytes: int | None = None,
) -> Layout:
    """Evaluate every tensor-parallel size up to `count` devices. `cache_bytes`: a fixed KV cache size per device."""
    sizes = tuple(_judge(model, memory_bytes, size, memory_share, cache_bytes) for size in range(1, count + 1))
    fitting = [size for size in sizes if size.fits]
    least = fitting[0] if fitting else None
    roomy = [size for size in fitting if size.has_room]
    if cache_bytes is not None:
        # The size of the KV cache is fixed, so every size that fits has room.
        roomy = fitting
    chosen = roomy[0] if roomy else max(fitting, key=lambda size: size.sequences, default=None)
    copies = count // chosen.size if chosen else 0
    return Layout(
        sizes=sizes,
        least=least,
        recommended=chosen,
        copies=copies,
        idle=count - copies * chosen.size if chosen else count,
        reason=_reason_for(chosen, least, bool(roomy), cache_bytes is not None, model)
        if chosen and least
        else _reason_against(model, memory_bytes, count, memory_share),
    )


def _judge(model: ModelSize, memory_bytes: int, size: int, memory_share: float, fixed: int | None) -> Size:
    weights = model.weight_bytes // size
    room = int(memory_bytes * memory_share) - weights - RESERVE_BYTES
    cache = room if fixed is None else min(fixed, room)
    per_token = model.kv_bytes_on_device(size)
    blocks = max(0, cache) // (per_token * _BLOCK_TOKENS)
    fits = fixed is None or room >= fixed
    return Size(
        size=size,
        invalid=model.problem(size),
        weight_bytes=weights,
        cache_bytes=cache,
        tokens=blocks * _BLOCK_TOKENS,
        sequences=blocks // -(-model.max_model_len // _BLOCK_TOKENS) if fits else 0,
    )


def gib(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB"


def _reason_against(model: ModelSize, memory_bytes: int, count: int, memory_share: float) -> str:
    return (
        f"no valid size up to {count} fits; needed are {gib(model.weight_bytes)} of weights, {gib(RESERVE_BYTES)} of"
        f" reserve on each device, and one sequence of {model.max_model_len} tokens"
        f" ({gib(model.max_model_len * model.kv_bytes_per_token)}), but only {memory_share:.0%} of {gib(memory_bytes)}"
        " is available on each device"
    )


def _reason_for(chosen: Size, least: Size, roomy: bool, given: bool, model: ModelSize) -> str:
    holds = (
        f"{gib(chosen.weight_bytes)} of weights and {gib(chosen.cache_bytes)} of KV cache on each device, "
        f"{chosen.sequences} full sequence{'s' if chosen.sequences > 1 else ''} of {model.max_model_len} tokens"
    )
    if given:
        return f"{holds}; the smallest size that holds the requested KV cache"
    if not roomy:
        return f"{holds}; no size has a KV cache as large as the weights, and this size holds the most sequences"
    if chosen is least:
        return f"{holds}; the smallest size that fits, and its KV cache is at least as large as the weights"
    return (
        f"{holds}; {least.size} would fit, but with {gib(least.cache_bytes)} of KV cache for"
        f" {gib(least.weight_bytes)} of weights it batches too few sequences to be efficient"
    )

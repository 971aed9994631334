"""Which tensor-parallel sizes fit devices of a given memory, and which of them to take."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.engine.gpus import GIB
from tokka.engine.sizing import ModelSize

# vLLM's default of gpu_memory_utilization (0.32): the rest is left to the driver and to other processes.
MEMORY_SHARE = 0.92
# Within that share, on each device: activations of a prefill step, logits of a batch, CUDA graphs, buffers of the
# collectives. vLLM measures them at start; this is a round estimate of what they come to.
RESERVE_BYTES = 2 * GIB
# Tokens of a block of the KV cache; a sequence takes whole blocks.
_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Size:
    """One tensor-parallel size. Bytes are of each device."""

    size: int
    # Why the model cannot be split so.
    invalid: str | None
    weight_bytes: int
    # What is left for the KV cache, negative if the weights alone are too much.
    cache_bytes: int
    # Tokens that it holds.
    tokens: int
    # Sequences of the full length that it holds.
    sequences: int

    @property
    def fits(self) -> bool:
        return self.invalid is None and self.sequences > 0

    @property
    def has_room(self) -> bool:
        """Whether the KV cache can be as large as the weights.

        A decoding step reads the weights once and the cache of every running sequence. Where both take the same time,
        batching has won half of all it ever can; with less cache, devices wait for weights.
        """
        return self.fits and self.cache_bytes >= self.weight_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    sizes: tuple[Size, ...]
    # The smallest that holds the weights and one sequence of the full length.
    least: Size | None
    # The smallest with room for a batch, else the one that holds most.
    recommended: Size | None
    # Copies of it that the devices hold.
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
    """Judge every tensor-parallel size up to `count` devices. `cache_bytes`: each one's KV cache, where it is given."""
    sizes = tuple(_judge(model, memory_bytes, size, memory_share, cache_bytes) for size in range(1, count + 1))
    fitting = [size for size in sizes if size.fits]
    least = fitting[0] if fitting else None
    roomy = [size for size in fitting if size.has_room]
    if cache_bytes is not None:
        # Its size is decided; whatever holds it has room.
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
        f"no valid size up to {count} fits: weights of {gib(model.weight_bytes)}, {gib(RESERVE_BYTES)} of reserve"
        f" on each device and one sequence of {model.max_model_len} tokens"
        f" ({gib(model.max_model_len * model.kv_bytes_per_token)}), with {memory_share:.0%} of {gib(memory_bytes)}"
        " on each"
    )


def _reason_for(chosen: Size, least: Size, roomy: bool, given: bool, model: ModelSize) -> str:
    holds = (
        f"{gib(chosen.weight_bytes)} of weights and {gib(chosen.cache_bytes)} of KV cache on each device, "
        f"{chosen.sequences} full sequence{'s' if chosen.sequences > 1 else ''} of {model.max_model_len} tokens"
    )
    if given:
        return f"{holds}; the smallest size that holds the KV cache asked for"
    if not roomy:
        return f"{holds}; no size has a KV cache as large as the weights, this one holds most"
    if chosen is least:
        return f"{holds}; the smallest size that fits, and its KV cache is no smaller than the weights"
    return (
        f"{holds}; {least.size} would fit, but with {gib(least.cache_bytes)} of KV cache for"
        f" {gib(least.weight_bytes)} of weights: too few sequences at once to pay for reading the weights"
    )

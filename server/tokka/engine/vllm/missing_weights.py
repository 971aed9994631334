"""Finds weights that no file contains, in the engine's processes after the files are loaded.

vLLM checks only the norms of a model. It allocates the other weights without a value, so an incomplete model would
compute with old memory contents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# vLLM's names of the tensors with a row for each output.
_OF_LAYERS = ("weight", "bias")
_OF_EXPERTS = ("w13_weight", "w2_weight")
_METHODS = {
    "UnquantizedLinearMethod": _OF_LAYERS,
    "UnquantizedEmbeddingMethod": _OF_LAYERS,
    "UnquantizedFusedMoEMethod": _OF_EXPERTS,
}


def refuse_missing_weights() -> None:
    """Make vLLM's loader raise ValueError if the files lack weights of the model.

    Quantized models are not checked: they have tensors that no file needs to contain.
    """
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    load = DefaultModelLoader.load_weights

    def load_and_check(self: Any, model: Any, model_config: Any) -> None:
        checks = model_config.quantization is None and self.enable_weights_track is not False
        if checks:
            mark(model)
        load(self, model, model_config)
        if checks and (missing := missing_in(model)):
            raise ValueError(_message(missing))

    DefaultModelLoader.load_weights = load_and_check


def _message(missing: list[str]) -> str:
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return (
        f"no weight file holds {missing[0]}{others}; download the model again, or serve it anyway with "
        "--engine-arg 'model_loader_extra_config={\"enable_weights_track\": false}'"
    )


def mark(model: Any) -> None:
    """Write NaN into the first value of each row of each weight. Loading overwrites it."""
    for _, _, weight in _weights(model):
        weight.fill_(float("nan"))


def missing_in(model: Any) -> list[str]:
    """Return the weights, or the parts of a joined weight, that are still marked with NaN.

    A part counts only if all of its rows are marked: some rows may be padding, which no file contains.
    """
    missing = []
    for name, sizes, weight in _weights(model):
        parts = [part.all(dim=-1).any() for part in weight.isnan().split(sizes, dim=-1)]
        for number, is_missing in enumerate(parts, start=1):
            if is_missing:
                missing.append(f"{name} (part {number} of {len(sizes)})" if len(sizes) > 1 else name)
    return missing


def _weights(model: Any) -> Iterator[tuple[str, list[int], Any]]:
    """Yield the name of each weight, the row counts of the tensors that it joins, and the first value of each row.

    vLLM joins queries, keys and values, for example. The last dimension of the yielded values is that of the rows.
    """
    for module_name, module in model.named_modules():
        method = type(getattr(module, "quant_method", None)).__name__
        for name, weight in module.named_parameters(recurse=False):
            if name not in _METHODS.get(method, ()) or not weight.is_floating_point() or weight.is_meta:
                continue
            if name in _OF_EXPERTS:
                values = weight.data[..., 0]
            else:
                values = weight.data[(slice(None), *[0] * (weight.dim() - 1))]
            yield f"{module_name}.{name}", _sizes(module, name, values.shape[-1]), values


def _sizes(module: Any, name: str, rows: int) -> list[int]:
    if name == "w13_weight":
        # The gate and up projections of each expert.
        return [rows // 2, rows - rows // 2]
    sizes = list(getattr(module, "output_partition_sizes", None) or [rows])
    return sizes if sum(sizes) == rows else [rows]

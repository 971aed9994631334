"""`tokka plan`: computes whether a model fits, and on how many devices. It does not load the model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from tokka.planner.gpus import Gpu
    from tokka.planner.layout import Layout, Size
    from tokka.planner.lookup import FoundModel
    from tokka.planner.sizing import ModelSize

# Largest tensor-parallel size that is always listed, the usual device count of a node. Larger sizes only if valid.
_ALL_LISTED = 8
# Exit code.
_DOES_NOT_FIT = 1
_COLUMNS = ("TP", "weights", "KV cache", "tokens", "full sequences", "")


def plan(
    model: Annotated[str, typer.Argument(help="Local folder, hub id or preset name.", show_default=False)],
    *,
    gpu: Annotated[str | None, typer.Option(help="GPU model, as in mi250x, h100, a100-80.", show_default=False)] = None,
    count: Annotated[int, typer.Option(min=1, max=1024, help="Number of devices. An MI250X board is two.")] = 1,
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="Memory per device in GiB, instead of --gpu.", show_default=False)
    ] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"], typer.Option(help="Precision of unquantized weights.")
    ] = "auto",
    quantization: Annotated[str | None, typer.Option(help="As in fp8, int8, int4, mxfp4.", show_default=False)] = None,
    kv_cache_dtype: Annotated[Literal["auto", "fp8"], typer.Option(help="Precision of the KV cache.")] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Context length in tokens. Default: the model's own.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes.")] = False,
) -> None:
    """Show a model's memory needs, the tensor-parallel sizes that fit, and a recommendation. Exit code 1: none fits."""
    from tokka.cli.state import one_line
    from tokka.planner.layout import lay_out
    from tokka.planner.lookup import find_model
    from tokka.planner.sizing import measure

    with one_line():
        device = _device(gpu, memory)
        found = find_model(model)
        size = measure(
            found.config,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max_model_len,
            file_bytes=found.file_bytes,
        )
    layout = lay_out(size, device.memory_bytes, count)
    notes = (*found.notes, *size.notes, *_device_notes(device, size, dtype))
    command = _command(found, layout, dtype, quantization, kv_cache_dtype, max_model_len)
    if as_json:
        print(json.dumps(_as_json(found, size, device, layout, notes, command), indent=2))
    else:
        _show(found, size, device, count, layout, notes, command)
    if layout.recommended is None:
        raise typer.Exit(_DOES_NOT_FIT)


def _device(gpu: str | None, memory: float | None) -> Gpu:
    from tokka.errors import ConfigurationError
    from tokka.planner.gpus import GPU_NAMES, Gpu, find_gpu

    if (gpu is None) == (memory is None):
        raise ConfigurationError(f"give either --gpu NAME, one of {', '.join(GPU_NAMES)}, or --memory GIB")
    if gpu is None:
        return Gpu(f"{memory:g} GiB", float(memory or 0))
    if known := find_gpu(gpu):
        return known
    raise ConfigurationError(f"--gpu {gpu[:40]} is unknown; use one of {', '.join(GPU_NAMES)}, or --memory GIB")


def _device_notes(device: Gpu, size: ModelSize, dtype: str) -> list[str]:
    notes = []
    if "fp8" in device.lacks and size.precision.startswith("fp8"):
        notes.append(f"{device.name} has no fp8: the engine will refuse this model on it")
    if "bfloat16" in device.lacks and "bfloat16" in (dtype, size.config.dtype if dtype == "auto" else None):
        notes.append(f"{device.name} has no bfloat16: add --dtype float16")
    return notes


def _command(
    found: FoundModel,
    layout: Layout,
    dtype: str,
    quantization: str | None,
    kv_cache_dtype: str,
    max_model_len: int | None,
) -> str | None:
    if layout.recommended is None:
        return None
    words = ["tokka", "serve", found.model, "--tensor-parallel-size", str(layout.recommended.size)]
    if layout.copies > 1:
        words += ["--data-parallel-size", str(layout.copies)]
    if dtype != "auto":
        words += ["--dtype", dtype]
    # For other methods, the config of the quantized model tells the engine.
    if quantization in ("fp8", "bitsandbytes") and found.config.quantization is None:
        words += ["--quantization", quantization]
    if kv_cache_dtype != "auto":
        words += ["--engine-arg", f"kv_cache_dtype={kv_cache_dtype}"]
    if max_model_len:
        words += ["--max-model-len", str(max_model_len)]
    return " ".join(words)


def _show(
    found: FoundModel,
    size: ModelSize,
    device: Gpu,
    count: int,
    layout: Layout,
    notes: tuple[str, ...],
    command: str | None,
) -> None:
    from tokka.cli.table import print_table
    from tokka.planner.layout import gib

    print(f"{found.model} ({found.origin})")
    if size.parameters:
        active = f", {_billions(size.parameters.active)} active per token" if size.parameters.idle else ""
        print(f"  parameters     {_billions(size.parameters.total)}{active}")
    print(f"  weights        {gib(size.weight_bytes)}, {size.precision}")
    print(f"  KV cache       {_kv(size.kv_bytes_per_token)} per token")
    full = size.kv_bytes_per_token * size.max_model_len
    print(f"  full sequence  {size.max_model_len} tokens, {gib(full)} of KV cache")
    boards = f" ({-(-count // device.per_board)} boards)" if device.per_board > 1 else ""
    print(f"  devices        {count} x {gib(device.memory_bytes)}, {device.name}{boards}")
    print()
    listed = [one for one in layout.sizes if one.size <= _ALL_LISTED or one.invalid is None]
    print_table(_COLUMNS, [_row(one, layout, size) for one in listed])
    print()
    if layout.recommended is None:
        print(f"Does not fit: {layout.reason}.")
    else:
        copies = f", {layout.copies} copies" if layout.copies > 1 else ""
        idle = f", {layout.idle} devices idle" if layout.idle else ""
        print(f"Recommended: tensor-parallel size {layout.recommended.size}{copies}{idle}.")
        print(f"  {layout.reason}.")
    for note in notes:
        print(f"  Note: {note}.")
    if command:
        print(f"\n{command}")


def _row(one: Size, layout: Layout, model: ModelSize) -> list[object]:
    from tokka.planner.layout import gib

    if one.invalid:
        return [one.size, "", "", "", "", f"not valid: {one.invalid.partition(' over ')[0]}"]
    cells: list[object] = [one.size, gib(one.weight_bytes), gib(max(0, one.cache_bytes)), str(one.tokens)]
    if one is layout.recommended:
        word = "recommended"
    elif one is layout.least:
        word = "fits, the least"
    elif one.fits:
        word = "fits"
    elif one.tokens:
        word = f"does not fit {model.max_model_len} tokens; --max-model-len {one.tokens} would"
    else:
        word = "does not fit"
    return [*cells, str(one.sequences), word]


def _as_json(
    found: FoundModel, size: ModelSize, device: Gpu, layout: Layout, notes: tuple[str, ...], command: str | None
) -> dict[str, Any]:
    chosen = layout.recommended
    return {
        "model": found.model,
        "origin": found.origin,
        "parameters": size.parameters.total if size.parameters else None,
        "active_parameters": size.parameters.active if size.parameters else None,
        "precision": size.precision,
        "weight_bytes": size.weight_bytes,
        "kv_bytes_per_token": size.kv_bytes_per_token,
        "max_model_len": size.max_model_len,
        "device": {"name": device.name, "memory_bytes": device.memory_bytes, "count": len(layout.sizes)},
        "sizes": [
            {
                "tensor_parallel_size": one.size,
                "invalid": one.invalid,
                "fits": one.fits,
                "weight_bytes_per_device": one.weight_bytes,
                "kv_cache_bytes_per_device": max(0, one.cache_bytes),
                "kv_cache_tokens": one.tokens,
                "full_sequences": one.sequences,
            }
            for one in layout.sizes
        ],
        "least": layout.least.size if layout.least else None,
        "recommended": {
            "tensor_parallel_size": chosen.size if chosen else None,
            "copies": layout.copies,
            "idle_devices": layout.idle,
            "reason": layout.reason,
            "command": command,
        },
        "notes": notes,
    }


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _kv(number: int) -> str:
    return f"{number / 2**20:.2f} MiB" if number >= 2**20 else f"{number / 2**10:.1f} KiB"

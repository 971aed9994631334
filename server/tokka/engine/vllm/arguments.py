"""What vLLM's engine is started with: from our settings, the model's files and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import structlog

from tokka.engine.lookup import find_model, folder_of
from tokka.engine.options import parse_pairs
from tokka.engine.presets import find_preset
from tokka.engine.sizing import check_tensor_parallel, context_length, kv_bytes_per_token, measure
from tokka.engine.vllm.devices import choose_tensor_parallel, visible_devices
from tokka.engine.vllm.machine import GIB, available_memory_bytes
from tokka.errors import ConfigurationError, StartupError
from tokka.settings import Settings, parse_size

log = structlog.get_logger("tokka.engine")

# Beside the weights: the Python processes, activations of a prefill, and something for the rest of the machine.
_RESERVE_BYTES = 2 * GIB
# Zeroing a GiB takes seconds at start on a CPU, and a CPU cannot keep more sequences busy than this holds.
_CPU_CACHE_BYTES = GIB // 2
_CPU_FULL_SEQUENCES = 2
_CPU_STEP_TOKENS = 512


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """The part of the settings that concerns this engine."""

    model: str | None
    served_name: str
    cache_dir: Path
    tensor_parallel_size: int | Literal["auto"]
    pipeline_parallel_size: int
    data_parallel_size: int
    dtype: str
    quantization: str | None
    max_model_len: int | None
    max_num_seqs: int | None
    kv_cache_bytes: int | None
    chat_template: str | None
    raw_chat: bool
    tool_call_parser: str | None
    reasoning_parser: str | None
    enforce_eager: bool | None
    optimize: Literal["start", "throughput"] | None
    engine_args: Sequence[str]
    max_completion_tokens: int | None
    verbose: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        preset = find_preset(settings.model)
        return cls(
            model=preset.hub_id if preset else settings.model,
            served_name=settings.names()[0],
            cache_dir=settings.cache_dir,
            tensor_parallel_size=settings.tensor_parallel_size,
            pipeline_parallel_size=settings.pipeline_parallel_size,
            data_parallel_size=settings.data_parallel_size,
            dtype=settings.dtype,
            quantization=settings.quantization,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            kv_cache_bytes=parse_size(settings.kv_cache_memory) if settings.kv_cache_memory else None,
            chat_template=_read_template(settings.chat_template) if settings.chat_template else None,
            raw_chat=settings.raw_chat,
            tool_call_parser=settings.tool_call_parser,
            reasoning_parser=settings.reasoning_parser,
            enforce_eager=settings.enforce_eager,
            optimize=settings.optimize,
            engine_args=settings.engine_arg,
            max_completion_tokens=settings.max_completion_tokens,
            verbose=settings.log_level == "debug",
        )

    @property
    def ranks(self) -> int:
        """Processes one copy of the model is spread over."""
        return self.split * self.pipeline_parallel_size

    @property
    def split(self) -> int:
        """Devices a layer is split over. While that is still to be chosen: 1, what a CPU will get."""
        return 1 if self.tensor_parallel_size == "auto" else self.tensor_parallel_size

    def local_folder(self) -> Path | None:
        """Return the model as a folder, or None for a hub id and for the embedded model."""
        return None if self.model is None else folder_of(self.model)


def engine_arguments(
    options: VllmOptions, model: str, files: tuple[Mapping[str, Any], int] | None, *, cpu: bool
) -> dict[str, Any]:
    """Return the fields of AsyncEngineArgs. `files`: the model's config and the bytes of its weights, if it is local.

    Raises ConfigurationError or StartupError for what cannot work, before anything is loaded.
    """
    options = replace(options, tensor_parallel_size=_tensor_parallel_size(options, model, files, cpu=cpu))
    arguments: dict[str, Any] = {
        "model": model,
        # The label of vLLM's own metrics.
        "served_model_name": [options.served_name],
        "dtype": options.dtype,
        "quantization": options.quantization,
        "max_model_len": options.max_model_len,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "data_parallel_size": options.data_parallel_size,
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        # Where nobody has said so: until compilation.py has chosen.
        "enforce_eager": cpu if options.enforce_eager is None else options.enforce_eager,
    }
    if options.reasoning_parser is not None:
        # A constraint holds once the thoughts have ended, which the engine has to see.
        arguments["reasoning_parser"] = options.reasoning_parser
    if options.max_num_seqs is not None:
        arguments["max_num_seqs"] = options.max_num_seqs
    if files:
        config, weight_bytes = files
        if cpu and options.kv_cache_bytes is None and (per_token := kv_bytes_per_token(config, options.dtype)):
            length = options.max_model_len or context_length(config)
            arguments["kv_cache_memory_bytes"] = _cpu_cache_bytes(options, per_token, length, weight_bytes)
    if cpu:
        # A step is as long as its prompts are, and all that run wait for it: vLLM's default of 2048 tokens takes a
        # second and more.
        arguments["max_num_batched_tokens"] = max(_CPU_STEP_TOKENS, options.max_num_seqs or 0)
    if cpu and options.ranks == 1 and options.data_parallel_size == 1:
        arguments["distributed_executor_backend"] = "uni"
    return arguments | parse_pairs(options.engine_args)


def _tensor_parallel_size(
    options: VllmOptions, model: str, files: tuple[Mapping[str, Any], int] | None, *, cpu: bool
) -> int:
    """Return the size asked for, if it can split the model, or for `auto` the one that suits model and devices."""
    if options.tensor_parallel_size != "auto":
        preset = find_preset(model)
        config = files[0] if files else preset.config if preset else {}
        if problem := check_tensor_parallel(config, options.tensor_parallel_size):
            raise ConfigurationError(f"--tensor-parallel-size {options.tensor_parallel_size}: the model's {problem}")
        return options.tensor_parallel_size
    if cpu:
        log.info("tensor_parallel_size_chosen", tensor_parallel_size=1, reason="the engine runs on a CPU")
        return 1
    if options.pipeline_parallel_size > 1:
        raise ConfigurationError("--tensor-parallel-size auto: with --pipeline-parallel-size give a number")
    engine_args = parse_pairs(options.engine_args)
    config, file_bytes = files or (find_model(model).config, None)
    size = measure(
        config,
        dtype=options.dtype,
        quantization=options.quantization,
        kv_cache_dtype=str(engine_args.get("kv_cache_dtype", "auto")),
        max_model_len=options.max_model_len,
        file_bytes=file_bytes,
    )
    return choose_tensor_parallel(
        size,
        visible_devices(),
        copies=options.data_parallel_size,
        cache_bytes=options.kv_cache_bytes,
        engine_args=engine_args,
    )


def _read_template(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigurationError(f"--chat-template {path} cannot be read: {reason}") from None


def _cpu_cache_bytes(options: VllmOptions, per_token: int, length: int, weight_bytes: int) -> int:
    """Return the KV cache per rank for this machine: some full sequences, never more than half of what is left."""
    sequence = length * per_token // options.split
    # A block holds 128 tokens on a CPU; one more than the sequence fills.
    least = max(64 << 20, sequence + 128 * per_token)
    free = available_memory_bytes()
    copies = options.data_parallel_size
    room = (free - weight_bytes * copies - _RESERVE_BYTES) // (options.ranks * copies)
    if room < least:
        raise StartupError(
            f"not enough memory: the weights take {weight_bytes / GIB:.1f} GiB, the KV cache for one sequence of "
            f"{length} tokens {least / GIB:.1f} GiB, the processes {_RESERVE_BYTES / GIB:.0f} GiB, and "
            f"{free / GIB:.1f} GiB are free; free memory, choose a smaller model or lower --max-model-len"
        )
    return max(least, min(room // 2, max(_CPU_CACHE_BYTES, _CPU_FULL_SEQUENCES * sequence)))

"""vLLM's engine arguments, derived from the settings, the model's files and the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import structlog

from tokka.engine.engine_args import parse_pairs
from tokka.engine.host import available_memory_bytes
from tokka.engine.vllm.start.devices import choose_tensor_parallel, visible_devices
from tokka.engine.vllm.start.embedded import embedded_embedding_model
from tokka.engine.vllm.start.environment import GIB
from tokka.engine.vllm.start.parser_names import check_parser_names
from tokka.errors import ConfigurationError, StartupError, unreadable
from tokka.planner.lookup import folder_of
from tokka.planner.model_folder import ModelFiles, read_config
from tokka.planner.presets import find_preset
from tokka.planner.sizing import ModelSize, check_tensor_parallel, kv_bytes_per_token, measure
from tokka.settings import EMBEDDED_EMBEDDING_MODEL, EngineSettings, Settings, expanded, parse_size

log = structlog.get_logger("tokka.engine")

# Bytes reserved besides weights and KV cache: Python processes, prefill activations, and some for other programs.
_RESERVE_BYTES = 2 * GIB
# The same for an encoder: one process, and short texts.
_ENCODER_RESERVE_BYTES = GIB * 7 // 10
# Bytes of the KV cache on a CPU, or room for this many full sequences if that is more. Zeroing a GiB takes seconds at
# start, and a CPU cannot keep more sequences busy than this holds.
_CPU_CACHE_BYTES = GIB // 2
_CPU_FULL_SEQUENCES = 2
# Bytes of the KV cache on a CPU if the model's config does not tell the bytes per token.
_CPU_UNKNOWN_BYTES = 4 * GIB
_CPU_STEP_TOKENS = 512
# Share of a GPU's memory for an embedding model beside the main one.
_BESIDE_GPU_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """The engine's settings, and values that are derived from settings once, before the first start."""

    # Not in the representation: at run time this object also holds the server's keys.
    settings: EngineSettings = field(repr=False)
    # The hub id of a preset, otherwise `settings.model`.
    model: str | None
    served_name: str
    cache_dir: Path
    # The text of the file in `settings.chat_template`.
    chat_template: str | None
    max_completion_tokens: int | None
    verbose: bool
    # False for the embedding model beside the main one.
    is_main: bool = True
    # Whether the server's process must not reach for the hub: no model is on it.
    stays_offline: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            settings,
            model=_model_of(settings),
            served_name=settings.names()[0],
            cache_dir=_cache_dir(settings.cache_dir),
            chat_template=_read_template(settings.chat_template) if settings.chat_template else None,
            max_completion_tokens=settings.max_completion_tokens,
            verbose=settings.log_level == "debug",
            stays_offline=_needs_no_hub(settings),
        )

    @classmethod
    def for_embedding_model(cls, settings: Settings) -> Self:
        """Return the options of the embedding model. Other settings of the main model's engine do not apply to it."""
        own = settings.model_copy(
            update={
                **{name: field.get_default() for name, field in EngineSettings.model_fields.items()},
                "model": settings.embedding_model,
                "engine_arg": settings.embedding_engine_arg,
            }
        )
        return cls(
            own,
            model=settings.embedding_model,
            served_name=settings.embedding_names()[0],
            cache_dir=_cache_dir(settings.cache_dir),
            chat_template=None,
            max_completion_tokens=None,
            verbose=settings.log_level == "debug",
            is_main=False,
            stays_offline=_needs_no_hub(settings),
        )

    def check(self) -> None:
        """Check parser names and the model folder's config, but not the weights. Quick. Raises StartupError."""
        # design 1.1.1
        has_own = "reasoning_parser_plugin" in self.engine_args
        check_parser_names(self.settings.tool_call_parser, None if has_own else self.settings.reasoning_parser)
        if folder := self.local_folder():
            read_config(folder)

    @property
    def engine_args(self) -> dict[str, Any]:
        """The fields of AsyncEngineArgs that the operator sets by name."""
        return parse_pairs(self.settings.engine_arg)

    @property
    def kv_cache_bytes(self) -> int | None:
        """Size of the KV cache per device; None for the engine's default."""
        size = self.settings.kv_cache_memory
        return parse_size(size) if size else None

    @property
    def ranks(self) -> int:
        """Number of processes per copy of the model."""
        return self.split * self.settings.pipeline_parallel_size

    @property
    def split(self) -> int:
        """Number of devices that share each layer. 1 while `auto` is not resolved yet, since a CPU gets 1."""
        size = self.settings.tensor_parallel_size
        return 1 if size == "auto" else size

    @property
    def load_format(self) -> str:
        return str(self.engine_args.get("load_format", "auto"))

    @property
    def revision(self) -> str | None:
        """The model's revision on the hub; None for the latest."""
        revision = self.engine_args.get("revision")
        return None if revision is None else str(revision)

    def local_folder(self) -> Path | None:
        """Return the model's folder; None for a hub id or the embedded model."""
        return None if self.model is None else folder_of(self.model)


def engine_arguments(options: VllmOptions, model: str, files: ModelFiles, *, cpu: bool) -> dict[str, Any]:
    """Return the fields of AsyncEngineArgs.

    Raises ConfigurationError or StartupError for arguments that cannot work, before anything is loaded.
    """
    settings = options.settings
    arguments: dict[str, Any] = {
        "model": model,
        # The label of vLLM's own metrics.
        "served_model_name": [options.served_name],
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "max_model_len": settings.max_model_len,
        "tensor_parallel_size": _tensor_parallel_size(options, files, cpu=cpu),
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        # Reports the work of each step. Admission learns step costs from it.
        "enable_logging_iteration_details": True,
        # Without --enforce-eager this is a placeholder until compilation.py chooses.
        "enforce_eager": cpu if settings.enforce_eager is None else settings.enforce_eager,
    }
    if settings.reasoning_parser is not None:
        # A constraint applies after the reasoning, so the engine must see where the reasoning ends.
        arguments["reasoning_parser"] = settings.reasoning_parser
    if settings.max_num_seqs is not None:
        arguments["max_num_seqs"] = settings.max_num_seqs
    pools = _pools(options, model, files)
    if pools:
        arguments |= _pooling_arguments(options, files, cpu=cpu)
    elif cpu:
        # All running requests wait for each step, and its prompt tokens determine how long it takes. With vLLM's
        # default of 2048 tokens that is a second or more.
        arguments["max_num_batched_tokens"] = max(_CPU_STEP_TOKENS, settings.max_num_seqs or 0)
    # design 1.2.1
    if cpu and options.kv_cache_bytes is None:
        arguments["kv_cache_memory_bytes"] = _cpu_cache_bytes(options, files)
    # design 1.2.2
    if cpu and options.ranks == 1 and settings.data_parallel_size == 1:
        arguments["distributed_executor_backend"] = "uni"
    return arguments | options.engine_args


def _pools(options: VllmOptions, model: str, files: ModelFiles) -> bool:
    """Return whether vLLM will run the model as a pooling model, as far as its files tell."""
    runner = str(options.engine_args.get("runner", "auto"))
    if runner != "auto":
        return runner == "pooling"
    is_sentence_transformer = (Path(model) / "modules.json").exists()
    return not options.is_main or is_sentence_transformer or files.config.is_encoder


def _pooling_arguments(options: VllmOptions, files: ModelFiles, *, cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if not options.is_main:
        arguments["runner"] = "pooling"
        if not cpu:
            # The main model takes nine tenths of the memory.
            arguments["gpu_memory_utilization"] = _BESIDE_GPU_SHARE
    if not cpu:
        return arguments
    if options.settings.dtype == "auto" and files.config.dtype in (None, "float32"):
        # A small model's vectors are then those of other libraries, to the last digits.
        arguments["dtype"] = "float32"
    # An encoder needs its whole text in one step.
    arguments["max_num_batched_tokens"] = max(
        _CPU_STEP_TOKENS, options.settings.max_model_len or files.config.context_length
    )
    return arguments


def _model_of(settings: Settings) -> str | None:
    """Return the folder or hub id of the main model; None for the embedded chat model. Raises StartupError."""
    if settings.model == EMBEDDED_EMBEDDING_MODEL and not os.path.exists(settings.model):
        return str(embedded_embedding_model())
    preset = find_preset(settings.model)
    return preset.hub_id if preset else settings.model


def _needs_no_hub(settings: Settings) -> bool:
    models = [_model_of(settings)]
    if settings.embedding_names():
        models.append(settings.embedding_model)
    return all(model is None or folder_of(model) is not None for model in models)


def _tensor_parallel_size(options: VllmOptions, files: ModelFiles, *, cpu: bool) -> int:
    """Return the requested size if it can split the model; for `auto`, choose one for the model and the devices."""
    size = options.settings.tensor_parallel_size
    if size != "auto":
        if problem := check_tensor_parallel(files.config, size):
            raise ConfigurationError(f"--tensor-parallel-size {size}: the model's {problem}")
        return size
    if cpu:
        log.info("tensor_parallel_size_chosen", tensor_parallel_size=1, reason="the engine runs on a CPU")
        return 1
    if options.settings.pipeline_parallel_size > 1:
        raise ConfigurationError("--tensor-parallel-size auto needs --pipeline-parallel-size 1; else give a number")
    # design 1.2.3
    return choose_tensor_parallel(
        _measure(options, files),
        visible_devices(),
        copies=options.settings.data_parallel_size,
        cache_bytes=options.kv_cache_bytes,
        engine_args=options.engine_args,
    )


def _measure(options: VllmOptions, files: ModelFiles) -> ModelSize:
    """Return the model's size. Raises ConfigurationError if its config lacks a needed value."""
    return measure(
        files.config,
        dtype=options.settings.dtype,
        quantization=options.settings.quantization,
        kv_cache_dtype=str(options.engine_args.get("kv_cache_dtype", "auto")),
        max_model_len=options.settings.max_model_len,
        file_bytes=files.weight_bytes,
    )


def _cache_dir(path: Path) -> Path:
    try:
        return expanded(path)
    except ValueError as error:
        raise ConfigurationError(f"{error}; give --cache-dir, or set HOME") from None


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(f"--chat-template {path} cannot be read: {error.strerror}", error) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--chat-template {path} is not UTF-8 text; give a text file") from None


def _cpu_cache_bytes(options: VllmOptions, files: ModelFiles) -> int:
    """Return the bytes of the KV cache per rank: at most half of the free room, but at least one full sequence.

    Raises StartupError if one sequence does not fit.
    """
    # An encoder computes each text in one step, and keeps nothing of it.
    is_encoder = files.config.is_encoder
    per_token = 0 if is_encoder else kv_bytes_per_token(files.config, options.settings.dtype)
    reserve = _ENCODER_RESERVE_BYTES if is_encoder else _RESERVE_BYTES
    length = options.settings.max_model_len or files.config.context_length
    sequence = length * (per_token or 0) // options.split
    # One extra block: on a CPU a block holds 128 tokens.
    least = max(64 << 20, sequence + 128 * (per_token or 0))
    weight_bytes = _weight_bytes(options, files)
    free = available_memory_bytes()
    copies = options.settings.data_parallel_size
    room = (free - weight_bytes * copies - reserve) // (options.ranks * copies)
    # design 1.2.1
    if room < least:
        raise StartupError(
            f"not enough memory: the weights take {weight_bytes / GIB:.1f} GiB, the KV cache for one sequence of "
            f"{length} tokens {least / GIB:.1f} GiB, the processes {reserve / GIB:.1g} GiB, and "
            f"{free / GIB:.1f} GiB are free; free memory, choose a smaller model or lower --max-model-len"
        )
    if is_encoder:
        return least
    # Without the bytes per token the size of a sequence is unknown. The engine reports the length that the cache holds.
    wanted = _CPU_FULL_SEQUENCES * sequence if per_token else _CPU_UNKNOWN_BYTES
    return max(least, min(room // 2, max(_CPU_CACHE_BYTES, wanted)))


def _weight_bytes(options: VllmOptions, files: ModelFiles) -> int:
    """Return the size of the weights in bytes; 0 if it is unknown."""
    if files.weight_bytes is not None:
        return files.weight_bytes
    try:
        return _measure(options, files).weight_bytes
    except ConfigurationError:
        return 0

"""The devices this process may use, and the tensor-parallel size that suits them (`--tensor-parallel-size auto`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from tokka.errors import StartupError
from tokka.planner.layout import MEMORY_SHARE, gib, lay_out
from tokka.planner.sizing import ModelSize

log = structlog.get_logger("tokka.engine")


# Runs in a separate process. vLLM must not be imported here before its environment is set, and a process that queries a
# device may keep a context of some hundred MiB on it until the process ends.
_ASK = """
import json
from vllm.platforms import current_platform as platform
count = 0 if platform.is_unspecified() else platform.device_count()
print(json.dumps([platform.get_device_total_memory(device) for device in range(count)]))
"""
_ASK_S = 300


# Variables that hide devices from a process.
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def check_devices() -> None:
    """Raise StartupError if this process sees no device. Imports vllm."""
    from vllm.platforms import current_platform as platform

    # design 1.2.4
    if platform.is_unspecified() or platform.device_count() == 0:
        raise no_devices()


def no_devices() -> StartupError:
    hidden = [f"{name}={os.environ[name]}" for name in _HIDING if name in os.environ]
    reason = f" ({', '.join(hidden)} hides GPUs)" if hidden else ""
    return StartupError(
        f"no GPU is visible to this process{reason}; pass the GPUs to it (Docker: --gpus all, or for AMD --device "
        "/dev/kfd --device /dev/dri; Slurm: --gpus-per-node; Kubernetes: a limit for nvidia.com/gpu or amd.com/gpu), "
        "check that nvidia-smi or rocm-smi lists them, or install the engine for CPUs, tokka[cpu]"
    )


def visible_devices() -> list[int]:
    """Return the memory of each visible device in bytes. Blocks for some seconds. Raises StartupError."""
    environ = os.environ | {"VLLM_CONFIGURE_LOGGING": "0", "VLLM_PLUGINS": ""}
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", _ASK], env=environ, capture_output=True, encoding="utf-8", timeout=_ASK_S, check=True
        )
        found = [int(memory) for memory in json.loads(done.stdout.splitlines()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        said = error.stderr.strip().splitlines() if isinstance(error, subprocess.CalledProcessError) else []
        reason = said[-1] if said else str(error)
        raise StartupError(
            f"--tensor-parallel-size auto: the memory of the devices cannot be read ({reason[:200]}); give a number"
        ) from None
    if not found:
        raise no_devices()
    return found


def choose_tensor_parallel(
    model: ModelSize, memory_bytes: list[int], *, copies: int, cache_bytes: int | None, engine_args: Mapping[str, Any]
) -> int:
    """Return the smallest size with room for the KV cache, and log why. Raises StartupError if none fits.

    `copies`: copies of the model. Every device counts as if it had the memory of the smallest.
    """
    if len(memory_bytes) < copies:
        raise StartupError(
            f"--tensor-parallel-size auto: {len(memory_bytes)} devices are visible for {copies} copies of the model;"
            " lower --data-parallel-size, or make more devices visible to this process"
        )
    share = engine_args.get("gpu_memory_utilization", MEMORY_SHARE)
    layout = lay_out(
        model, min(memory_bytes), len(memory_bytes) // copies, memory_share=float(share), cache_bytes=cache_bytes
    )
    if layout.recommended is None:
        raise StartupError(
            f"--tensor-parallel-size auto: {layout.reason}; lower --max-model-len, use more devices or a quantized"
            " model"
        )
    log.info(
        "tensor_parallel_size_chosen",
        tensor_parallel_size=layout.recommended.size,
        devices=len(memory_bytes),
        device_memory=gib(min(memory_bytes)),
        reason=layout.reason,
    )
    return layout.recommended.size

"""The GPUs and the memory of this machine that the local launcher may give to workers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokka.engine.host import total_memory_bytes
from tokka.errors import ConfigurationError
from tokka.fleet.spec import Resources

# HIP reads both variables, and vLLM refuses different values. So a worker gets the same value in each that is set.
_OF_THE_LIBRARY = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
# Hides GPUs from HIP. HIP numbers the rest from 0, so only one of the two levels may be handed out.
_OF_THE_RUNTIME = "ROCR_VISIBLE_DEVICES"
# Hides every GPU. HIP takes an empty value for a variable that is not set.
_NONE = "-1"
# Values that end a list: the GPUs behind them are hidden. Slurm sets the second for jobs without GPUs.
_ENDS = (_NONE, "NoDevFiles")
_AMD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
_ASK_S = 30


@dataclass(frozen=True, slots=True)
class Machine:
    """`devices`: GPUs, in the form of `variables`, the environment variables that give a process its GPUs."""

    devices: tuple[str, ...]
    memory_bytes: int
    variables: tuple[str, ...] = ("CUDA_VISIBLE_DEVICES",)

    def environment(self, devices: Sequence[str]) -> dict[str, str]:
        """Return the variables of a process that may use these GPUs and no others."""
        return dict.fromkeys(self.variables, ",".join(devices) or _NONE)


def find_machine(environment: Mapping[str, str], total: Resources | None = None) -> Machine:
    """Return the resources that the gateway may use. Blocks for seconds. Raises ConfigurationError.

    `environment`: of the gateway. `total`: takes the place of detection, within the GPUs that the environment shows.
    """
    memory_bytes = total.memory_bytes if total is not None else None
    if memory_bytes is None:
        memory_bytes = total_memory_bytes()
    variables = tuple(name for name in _OF_THE_LIBRARY if name in environment)
    if not variables and _OF_THE_RUNTIME in environment:
        variables = (_OF_THE_RUNTIME,)
    if not variables:
        amd = 0 if total is not None else _count_amd()
        count = total.gpus if total is not None else amd or _count_nvidia(environment)
        variable = "HIP_VISIBLE_DEVICES" if amd or (total is not None and _AMD_NODES.exists()) else _OF_THE_LIBRARY[0]
        return Machine(tuple(map(str, range(count))), memory_bytes, (variable,))
    devices = _listed(environment[variables[0]])
    if total is None:
        return Machine(devices, memory_bytes, variables)
    if total.gpus > len(devices):
        raise ConfigurationError(
            f"the local launcher has {total.gpus} GPUs, but {variables[0]}={environment[variables[0]]} shows"
            f" {len(devices)} to the gateway; lower the number, or show it more GPUs"
        )
    return Machine(devices[: total.gpus], memory_bytes, variables)


def _listed(value: str) -> tuple[str, ...]:
    devices: list[str] = []
    for word in value.split(","):
        if not (device := word.strip()) or device in _ENDS:
            break
        devices.append(device)
    return tuple(devices)


def _count_nvidia(environment: Mapping[str, str]) -> int:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 - its folder differs between systems
            env=dict(environment),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ASK_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def _count_amd(nodes: Path = _AMD_NODES, devices: Path = Path("/dev/dri")) -> int:
    """Count the GPUs whose device file this process may open. The list of nodes also has the host's other GPUs."""
    count = 0
    for properties in nodes.glob("*/properties"):
        try:
            pairs = dict(line.split() for line in properties.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):
            continue
        minor = pairs.get("drm_render_minor", "0")
        count += minor != "0" and os.access(devices / f"renderD{minor}", os.R_OK | os.W_OK)
    return count

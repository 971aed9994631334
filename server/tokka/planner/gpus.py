"""Known GPUs, with their memory as the engine sees it."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU model."""

    name: str
    # GiB of one device. Less than the nominal figure: drivers and ECC keep some, and 80 GB is less than 80 GiB.
    memory_gib: float
    # Number of devices that one board shows.
    per_board: int = 1
    # Formats that it cannot compute in or that vLLM has no kernels for.
    lacks: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)


_VOLTA = ("bfloat16", "fp8")
_CDNA2 = ("fp8",)
# Memory: the smallest "total capacity" seen in PyTorch's out-of-memory messages for the device. For a100-40, v100,
# rtx4090 and mi325x no message was available: the maker's figure, less the loss seen on the other devices.
_TABLE = (
    Gpu("v100-16", 15.77, lacks=_VOLTA),
    Gpu("v100-32", 31.73, lacks=_VOLTA),
    Gpu("rtx4090", 23.5),
    Gpu("l4", 22.03),
    Gpu("l40s", 44.39),
    Gpu("a100-40", 39.39),
    Gpu("a100-80", 79.14),
    Gpu("h100", 79.10),
    Gpu("h200", 139.72),
    Gpu("b200", 178.35),
    Gpu("mi210", 63.98, lacks=_CDNA2),
    # 128 GB in two dies (GCDs) of 64 GB. The operating system, Slurm and vLLM see each die as a device.
    Gpu("mi250x", 63.98, per_board=2, lacks=_CDNA2),
    Gpu("mi300x", 191.69),
    Gpu("mi325x", 255.98),
)
GPU_NAMES = tuple(gpu.name for gpu in _TABLE)


def find_gpu(name: str) -> Gpu | None:
    """Return the GPU with this name, or None. Accepts common spellings: MI250X, A100-80GB, RTX 4090."""
    return _BY_PLAIN_NAME.get(_plain(name))


def _plain(name: str) -> str:
    return re.sub(r"nvidia|amd|instinct|gb$|[ _-]", "", name.lower())


_BY_PLAIN_NAME = {_plain(gpu.name): gpu for gpu in _TABLE}

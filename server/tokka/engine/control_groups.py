"""Reads the memory and CPU limits of this process's control groups (cgroups), version 1 and version 2.

A container or a job may limit any group above the process's own, so all of them count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SELF = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class _Files:
    """File names of one cgroup version. `cached`: the memory.stat line for file pages that the kernel can reclaim."""

    limit: str
    used: str
    cached: str


_MEMORY_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_MEMORY_V2 = _Files("memory.max", "memory.current", "inactive_file")


def free_memory_bytes(process: Path = _SELF) -> int | None:
    """Return the bytes that the groups still leave a process, or None without a limit. `process`: its /proc folder."""
    rooms = [
        room
        for controller, files in (("memory", _MEMORY_V1), (None, _MEMORY_V2))
        for folder in _groups(process, controller)
        if (room := _room(folder, files)) is not None
    ]
    return min(rooms, default=None)


def memory_limit_bytes(process: Path = _SELF) -> int | None:
    """Return the lowest memory limit of the groups, or None without a limit."""
    limits = [
        int(limit)
        for controller, files in (("memory", _MEMORY_V1), (None, _MEMORY_V2))
        for folder in _groups(process, controller)
        if (limit := _text(folder / files.limit)).isdigit()
    ]
    return min(limits, default=None)


def cpu_quota(process: Path = _SELF) -> int | None:
    """Return the CPU time that the groups allow, in cores and rounded up, or None without a limit."""
    quotas = [_text(folder / "cpu.max").split() for folder in _groups(process, None)]
    quotas += [
        [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")] for folder in _groups(process, "cpu")
    ]
    # Without a limit, version 2 shows `max` and version 1 shows -1.
    shares = [int(quota[0]) / int(quota[1]) for quota in quotas if len(quota) == 2 and all(map(str.isdigit, quota))]
    return max(1, math.ceil(min(shares))) if shares else None


def _room(folder: Path, files: _Files) -> int | None:
    limit = _text(folder / files.limit)
    if not limit.isdigit():
        return None
    used = _text(folder / files.used)
    return max(0, int(limit) - max(0, int(used or 0) - _cached(folder, files)))


def _cached(folder: Path, files: _Files) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == files.cached:
            return int(value)
    return 0


def _groups(process: Path, controller: str | None) -> Iterator[Path]:
    """Yield the folders of a process's group and its parent groups. `controller`: None for version 2."""
    path = _path_of(process, controller)
    for root, mount in _mounts(process, controller):
        inside = path.removeprefix(root.rstrip("/")) if path else ""
        # The mount shows another part of the tree. Of the process's groups, only the mount itself is visible.
        folder = mount if ".." in inside else Path(f"{mount}/{inside.strip('/')}")
        if not folder.is_dir():
            folder = mount
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(mount))


def _path_of(process: Path, controller: str | None) -> str:
    """Return the path of a process's group in a controller's hierarchy."""
    for line in _text(process / "cgroup").splitlines():
        number, names, path = line.split(":", 2)
        if (number == "0" and not names) if controller is None else controller in names.split(","):
            return path
    return ""


def _mounts(process: Path, controller: str | None) -> Iterator[tuple[str, Path]]:
    """Yield the root group and the mount point of each mount of a controller's hierarchy."""
    for line in _text(process / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" if controller is None else kind == "cgroup" and controller in options.split(","):
            root, mount = before.split(" ")[3:5]
            yield root, Path(mount)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

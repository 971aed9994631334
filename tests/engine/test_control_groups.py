"""Memory and CPU limits of control groups, as systemd, Slurm and containers set them, in both versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tokka.engine import control_groups, host
from tokka.engine.control_groups import cpu_quota, free_memory_bytes, memory_limit_bytes
from tokka.engine.host import available_cores, available_memory_bytes, total_memory_bytes

GIB = 1 << 30
# The value in version 1 that means no limit.
UNLIMITED_V1 = 9223372036854771712


class Machine:
    """A /proc folder of a process, and the mounted hierarchies of control groups."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.mounts = folder / "proc", folder / "mounts"
        self.proc.mkdir()
        self.mounts.mkdir()
        self._lines: list[str] = []

    def mount(self, name: str, kind: str, options: str = "rw", root: str = "/") -> Path:
        place = self.mounts / name
        place.mkdir()
        self._lines.append(f"32 31 0:29 {root} {place} rw,relatime shared:9 - {kind} {kind} {options}")
        (self.proc / "mountinfo").write_text("\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *self._lines]) + "\n")
        return place

    def groups(self, *lines: str) -> None:
        (self.proc / "cgroup").write_text("\n".join(lines) + "\n")


def write(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def v1(limit: int, used: int, inactive: int = 0) -> dict[str, object]:
    stat = f"inactive_file 1\ntotal_cache 7\ntotal_inactive_file {inactive}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}


def v2(limit: int | str, used: int, inactive: int = 0) -> dict[str, object]:
    return {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 5\ninactive_file {inactive}"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_v1_limit_of_the_process_group_counts(machine: Machine) -> None:
    memory = machine.mount("memory", "cgroup", "rw,memory")
    machine.mount("unified", "cgroup2")
    machine.groups("4:memory:/slurm/uid_7/job_9", "0::/")
    write(memory, v1(UNLIMITED_V1, 90 * GIB))
    write(memory / "slurm" / "uid_7" / "job_9", v1(16 * GIB, 4 * GIB))
    assert free_memory_bytes(machine.proc) == 12 * GIB


def test_v2_limit_below_the_mount_counts(machine: Machine) -> None:
    root = machine.mount("cgroup", "cgroup2")
    machine.groups("0::/system.slice/tokka.service")
    write(root, {})
    write(root / "system.slice" / "tokka.service", v2(8 * GIB, 3 * GIB))
    assert free_memory_bytes(machine.proc) == 5 * GIB


def test_smallest_room_of_all_groups_above_counts(machine: Machine) -> None:
    root = machine.mount("cgroup", "cgroup2")
    machine.groups("0::/slurm/job_9/step_0")
    write(root / "slurm" / "job_9", v2(16 * GIB, 15 * GIB))
    write(root / "slurm" / "job_9" / "step_0", v2("max", 1 * GIB))
    assert free_memory_bytes(machine.proc) == GIB


@pytest.mark.parametrize("version", [1, 2])
def test_inactive_file_pages_count_as_free(machine: Machine, version: int) -> None:
    root = machine.mount("cgroup", *(("cgroup", "rw,memory") if version == 1 else ("cgroup2",)))
    machine.groups("4:memory:/" if version == 1 else "0::/")
    write(root, (v1 if version == 1 else v2)(8 * GIB, 7 * GIB, 6 * GIB))
    assert free_memory_bytes(machine.proc) == 7 * GIB


@pytest.mark.parametrize("path", ["/docker/abc", "/../other"])
def test_container_sees_its_own_group_at_the_mount(machine: Machine, path: str) -> None:
    memory = machine.mount("memory", "cgroup", "rw,memory", root="/docker/abc")
    machine.groups(f"4:memory:{path}")
    write(memory, v1(2 * GIB, GIB))
    assert free_memory_bytes(machine.proc) == GIB


def test_no_limit_is_none(machine: Machine) -> None:
    assert free_memory_bytes(machine.proc) is None
    root = machine.mount("cgroup", "cgroup2")
    machine.groups("0::/user.slice")
    write(root / "user.slice", {**v2("max", GIB), "cpu.max": "max 100000"})
    assert free_memory_bytes(machine.proc) is None
    assert cpu_quota(machine.proc) is None


def test_lowest_limit_of_all_groups_above_is_the_memory(machine: Machine) -> None:
    assert memory_limit_bytes(machine.proc) is None
    root = machine.mount("cgroup", "cgroup2")
    machine.groups("0::/slurm/job_9/step_0")
    write(root / "slurm", v2("max", 15 * GIB))
    write(root / "slurm" / "job_9", v2(16 * GIB, 15 * GIB))
    write(root / "slurm" / "job_9" / "step_0", v2(32 * GIB, 1 * GIB))
    assert memory_limit_bytes(machine.proc) == 16 * GIB


def test_total_memory_is_the_limit_of_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    total = psutil.virtual_memory().total
    for limit, expected in ((None, total), (UNLIMITED_V1, total), (GIB, GIB)):
        monkeypatch.setattr(host, "memory_limit_bytes", lambda limit=limit: limit)
        assert total_memory_bytes() == expected


def test_used_beyond_the_limit_leaves_nothing(machine: Machine) -> None:
    root = machine.mount("cgroup", "cgroup2")
    machine.groups("0::/")
    write(root, v2(GIB, 2 * GIB))
    assert free_memory_bytes(machine.proc) == 0


def test_v2_cpu_quota_below_the_mount_counts(machine: Machine) -> None:
    root = machine.mount("cgroup", "cgroup2")
    machine.groups("0::/system.slice/tokka.service")
    write(root / "system.slice", {"cpu.max": "800000 100000"})
    write(root / "system.slice" / "tokka.service", {"cpu.max": "250000 100000"})
    assert cpu_quota(machine.proc) == 3


def test_v1_cpu_quota_counts(machine: Machine) -> None:
    cpu = machine.mount("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    machine.groups("3:cpu,cpuacct:/job")
    write(cpu, {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000})
    write(cpu / "job", {"cpu.cfs_quota_us": 50000, "cpu.cfs_period_us": 100000})
    assert cpu_quota(machine.proc) == 1


def test_engine_is_sized_by_the_control_group(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine.mount("cgroup", "cgroup2")
    machine.groups("0::/job")
    write(root / "job", {**v2(GIB, GIB // 2), "cpu.max": "100000 100000"})
    for function in (free_memory_bytes, cpu_quota):
        monkeypatch.setattr(function, "__defaults__", (machine.proc,))
    assert available_memory_bytes() == min(GIB // 2, psutil.virtual_memory().available)
    assert len(available_cores()) == 1
    assert control_groups.free_memory_bytes() == GIB // 2

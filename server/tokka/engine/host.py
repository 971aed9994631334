"""The cores and memory of this machine that the process may use."""

from __future__ import annotations

import os

import psutil

from tokka.engine.control_groups import cpu_quota, free_memory_bytes, memory_limit_bytes


def available_cores() -> list[int]:
    """Return the cores this process may use: its affinity, limited by the quota of its control groups."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[: cpu_quota()]


def available_memory_bytes() -> int:
    """Return the memory this process may still take: the free memory, limited by its control groups."""
    free, room = psutil.virtual_memory().available, free_memory_bytes()
    return free if room is None else min(free, room)


def total_memory_bytes() -> int:
    """Return this machine's memory, limited by the control groups of the process."""
    total, limit = psutil.virtual_memory().total, memory_limit_bytes()
    return total if limit is None else min(total, limit)

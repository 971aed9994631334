"""CPU time of the client and of a server's processes."""

from __future__ import annotations

import contextlib
import time

import psutil


class Cpu:
    """CPU time between two marks."""

    def __init__(self, pid: int | None) -> None:
        self._front: psutil.Process | None = None
        # Find the processes before the run, because this takes milliseconds. A server that has ended has none.
        with contextlib.suppress(psutil.NoSuchProcess):
            self._front = psutil.Process(pid) if pid else None
        self._children = self._front.children(recursive=True) if self._front else []
        self._marks: list[dict[str, float]] = []

    def mark(self) -> None:
        whole = psutil.cpu_times()
        now = {"client": time.process_time(), "machine": sum(whole[:3]) + sum(whole[5:8])}
        # The CPU time of an ended process is unknown. Give no figure then, instead of one that is too small.
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._front is not None:
                now["front"] = _cpu_s(self._front)
                now["server"] = now["front"] + sum(map(_cpu_s, self._children))
        self._marks.append(now)

    def used(self) -> dict[str, float]:
        """Return seconds between the first mark and the last. `others`: all other processes of this machine."""
        first, last = self._marks[0], self._marks[-1]
        used = {name: last[name] - first[name] for name in last if name in first}
        used["others"] = max(0.0, used.pop("machine") - used["client"] - used.get("server", 0.0))
        return {name: round(seconds, 3) for name, seconds in used.items()}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system

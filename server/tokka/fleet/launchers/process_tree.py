"""All processes of this machine, and the tree of one worker."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tokka.engine.supervision.processes import is_tracker, shared_memory

# More than the longest /proc/PID/stat.
_STAT_BYTES = 4096
# Seconds in which a resource tracker may remove files of killed processes, before it is killed, too.
_TRACKER_S = 2.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One process. `start_ticks`: its start, in clock ticks since the boot; with the pid, it names one process."""

    pid: int
    parent: int
    session: int
    start_ticks: int
    is_zombie: bool


def read_entry(pid: int) -> Entry | None:
    """Return a process; None if it does not exist. Raises OSError."""
    try:
        # Not by pathlib, which takes as long again, for thousands of processes each second.
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        stat = os.read(descriptor, _STAT_BYTES)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    # The second field is the program's name in brackets. It may hold spaces and brackets.
    fields = stat[stat.rindex(b")") + 2 :].split(maxsplit=20)
    return Entry(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in (b"Z", b"X"))


class ProcessTable:
    """The processes of this machine at one moment."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = {entry.pid: entry for entry in entries}
        self._children: dict[int, list[Entry]] = defaultdict(list)
        self._sessions: dict[int, list[Entry]] = defaultdict(list)
        for entry in self.entries.values():
            self._children[entry.parent].append(entry)
            self._sessions[entry.session].append(entry)

    @classmethod
    def read(cls) -> ProcessTable:
        """Blocks for milliseconds. Raises OSError."""
        return cls(entry for pid in _pids() if (entry := read_entry(pid)) is not None)

    def tree(self, leader: Entry, known: Iterable[Entry]) -> list[Entry]:
        """Return the processes in the leader's session, the known ones, and the descendants of all.

        A process can leave its parent or its session. Few leave both at once, and `known` has the ones seen before.
        """
        todo = [now for entry in (leader, *known) if (now := self._same(entry)) is not None]
        # The number of a session is free again after its last process. Then another session may have it.
        if leader.pid not in self.entries or self._same(leader) is not None:
            todo += self._sessions[leader.pid]
        found: dict[int, Entry] = {}
        while todo:
            entry = todo.pop()
            if entry.pid not in found:
                found[entry.pid] = entry
                todo += self._children[entry.pid]
        return sorted(found.values(), key=lambda entry: entry.pid)

    def _same(self, entry: Entry) -> Entry | None:
        now = self.entries.get(entry.pid)
        return now if now is not None and now.start_ticks == entry.start_ticks else None


class ProcessTree:
    """The processes of one worker. `leader` leads a session of its own."""

    def __init__(self, leader: Entry) -> None:
        self._leader = leader
        self._members: list[Entry] = [leader]
        self._shared: set[str] = set()
        self._killed_s: float | None = None
        # Bytes of shared pages that the sum of resident pages counts again, for the pids of the last exact measurement.
        self._counted_again = 0
        self._measured: list[int] = []

    def update(self, table: ProcessTable) -> None:
        """Find the processes of the tree again. Call it at least once while the leader runs."""
        self._members = table.tree(self._leader, self._members)

    def memory_bytes(self, limit: int) -> int:
        """Return the memory that only the end of these processes frees. Blocks.

        Pages of files do not count, since the kernel takes them back when memory is short: a worker that reads its
        weights would seem to use them twice. A shared page counts once. Below the limit the answer is an estimate,
        since an exact one takes the kernel 20 ms for each GiB.
        """
        running = [entry.pid for entry in self._members if not entry.is_zombie]
        resident = {pid: _bytes_of(pid, "status", ("RssAnon:", "RssShmem:", "VmSwap:")) or 0 for pid in running}
        total = sum(resident.values())
        if running != self._measured:
            self._measured, self._counted_again = running, 0
        if total - self._counted_again > limit:
            # The kernel does not show them for a process of another user. Then its shared pages count several times.
            shares = {pid: _bytes_of(pid, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")) for pid in running}
            exact = sum(resident[pid] if share is None else share for pid, share in shares.items())
            self._counted_again = max(0, total - exact)
        return total - self._counted_again

    def kill(self) -> bool:
        """Send SIGKILL to the processes found last. Return whether all have ended. Call it until then.

        Does not wait: a process that forks meanwhile is found by the next `update`. Removes the shared memory that
        killed processes leave behind.
        """
        running = [entry for entry in self._members if not entry.is_zombie]
        for entry in self._members:
            self._shared |= shared_memory(entry.pid)
            if entry.is_zombie and entry.parent == os.getpid() and entry != self._leader:
                # The gateway is the first process of a container, which gets the orphans.
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, entry.pid, os.WEXITED | os.WNOHANG)
        if not running:
            _remove_unused(self._shared, {entry.pid for entry in self._members})
            return True
        now_s = time.monotonic()
        others = [entry for entry in running if not _is_tracker(entry.pid)]
        if others or self._killed_s is None:
            self._killed_s = now_s
        for entry in running if now_s - self._killed_s > _TRACKER_S else others:
            with contextlib.suppress(OSError):
                os.kill(entry.pid, signal.SIGKILL)
        return False


def _remove_unused(paths: set[str], zombies: set[int]) -> None:
    """Remove the shared memory that no running process has mapped. ROCm shares a file between all its programs."""
    left = {path for path in paths if os.path.exists(path)}
    if left:
        left -= set().union(*(shared_memory(pid) for pid in _pids() if pid not in zombies))
    for path in left:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_tracker(pid: int) -> bool:
    try:
        return is_tracker(psutil.Process(pid))
    except psutil.Error:
        return False


def _bytes_of(pid: int, file: str, names: tuple[str, ...]) -> int | None:
    """Return the sum of these lines of a file of the process, in bytes. None if the file cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(names))

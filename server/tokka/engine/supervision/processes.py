"""Watches and kills the child processes of this server: the engine's and all others."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

from tokka.engine.supervision.watchdog import Activity

# Names of child processes that do not belong to the engine: of engine/grammars/compiler.py and parsing/worker.py.
COMPILER_NAME = "tokka-grammar"
PARSER_NAME = "tokka-parser"
_SHARED = "/dev/shm/"  # noqa: S108 - where Linux keeps named shared memory


def activity() -> Activity:
    """Return the engine processes' CPU time so far, and the pids of stopped ones.

    Walks the process table, which takes milliseconds: do not call it on the event loop.
    """
    cpu_s = 0.0
    stopped: list[int] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name() in (COMPILER_NAME, PARSER_NAME):
                # They work for requests that are not in flight yet, and would make a frozen engine look busy.
                continue
            times = process.cpu_times()
            # Count children that have ended: a compilation is many short processes.
            cpu_s += times.user + times.system + times.children_user + times.children_system
            if process.status() == psutil.STATUS_STOPPED:
                stopped.append(process.pid)
        except psutil.Error:
            # The process has ended meanwhile.
            continue
    return Activity(cpu_s, tuple(stopped))


class EngineProcesses:
    """The processes of a started engine. Detects the end of one, and removes their shared memory.

    An engine of several processes may take ten seconds to notice the death of one. A pidfd shows it at once.
    """

    def __init__(self, name_prefix: str) -> None:
        self._names: dict[int, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shared: set[str] = set()
        # Name and pid of the first process that has ended since `watch`.
        self.ended: str | None = None
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith(name_prefix) and process.status() != psutil.STATUS_ZOMBIE:
                    pidfd = os.pidfd_open(process.pid)
                    self._names[pidfd] = f"{process.name()} (pid {process.pid})"
                    self._shared |= _shared_memory(process.pid)

    def watch(self) -> None:
        """Notice from now on, in the running event loop, when a process ends or has ended before."""
        self._loop = asyncio.get_running_loop()
        for pidfd, name in self._names.items():
            self._loop.add_reader(pidfd, self._note_end, pidfd, name)

    def _note_end(self, pidfd: int, name: str) -> None:
        assert self._loop is not None
        self._loop.remove_reader(pidfd)
        self.ended = self.ended or name

    def close(self) -> None:
        """Forget the processes, and remove the shared memory that killed processes leave behind.

        Call it in the loop that watches them.
        """
        for pidfd in self._names:
            if self._loop is not None:
                self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._names.clear()
        for path in self._shared:
            Path(path).unlink(missing_ok=True)


def kill_children(spare: str | None = None) -> list[psutil.Process]:
    """Kill every descendant process except processes named `spare`. Return them without waiting for their end.

    Python's resource tracker survives: it cleans up the semaphores that the others leave behind.
    """
    killed = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name() != spare and not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
                killed.append(child)
    return killed


def kill_engine() -> None:
    """Kill every engine process and wait for their end. Blocks for up to 5 seconds."""
    psutil.wait_procs(kill_children(spare=PARSER_NAME), timeout=5)
    # Reap processes that vLLM ended without waiting for them.
    multiprocessing.active_children()


def end_resource_tracker() -> None:
    """Make Python's resource tracker clean up and end now. Otherwise it briefly outlives this process as an orphan."""
    # No public API exists. The tracker ends by itself only when its last writer, this process, has ended.
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def _shared_memory(pid: int) -> set[str]:
    """Return the paths of the named shared memory that a process has mapped."""
    # Intel's OpenMP unmaps its segment at once, but removes it only on an orderly exit.
    openmp = {f"{_SHARED}__KMP_REGISTERED_LIB_{pid}_0"}
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if _SHARED in line}
    # Semaphores belong to the resource tracker, which complains if they are gone.
    return openmp | {path for path in paths if path.startswith(_SHARED) and not path.startswith(f"{_SHARED}sem.")}

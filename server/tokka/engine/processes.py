"""The processes this server has started: the engine's, and theirs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

from tokka.engine.watchdog import Activity

# Names in the process table of processes that are not the engine's: those of engine/vllm/grammar.py, parsing/worker.py.
COMPILER_NAME = "tokka-grammar"
PARSER_NAME = "tokka-parser"
_SHARED = "/dev/shm/"  # noqa: S108 - where Linux keeps named shared memory


def activity() -> Activity:
    """Return what all processes of the engine have done so far. Walks the process table: milliseconds, so not on the
    event loop."""
    cpu_s = 0.0
    stopped: list[int] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name() in (COMPILER_NAME, PARSER_NAME):
                # They work for requests that do not run yet: an engine that is frozen would look busy.
                continue
            times = process.cpu_times()
            # Of children that have ended, too: a compilation is many short processes.
            cpu_s += times.user + times.system + times.children_user + times.children_system
            if process.status() == psutil.STATUS_STOPPED:
                stopped.append(process.pid)
        except psutil.Error:
            # Gone meanwhile.
            continue
    return Activity(cpu_s, tuple(stopped))


class EngineProcesses:
    """The processes an engine runs in, from its start on: whether one has ended, and what they left behind.

    An engine of several processes may take ten seconds to notice the death of one of them; a pidfd tells at once,
    and asking all of them is one system call.
    """

    def __init__(self, name_prefix: str) -> None:
        self._names: dict[int, str] = {}
        self._poll = select.poll()
        self._shared: set[str] = set()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith(name_prefix) and process.status() != psutil.STATUS_ZOMBIE:
                    pidfd = os.pidfd_open(process.pid)
                    self._names[pidfd] = f"{process.name()} (pid {process.pid})"
                    self._poll.register(pidfd, select.POLLIN)
                    self._shared |= _shared_memory(process.pid)

    def ended(self) -> str | None:
        """Return the name of a process that has ended."""
        events = self._poll.poll(0)
        return self._names[events[0][0]] if events else None

    def close(self) -> None:
        """Forget the processes, and remove the shared memory of those that were killed: nobody else will."""
        for pidfd in self._names:
            os.close(pidfd)
        self._names.clear()
        self._poll = select.poll()
        for path in self._shared:
            Path(path).unlink(missing_ok=True)


def kill_children(spare: str | None = None) -> list[psutil.Process]:
    """Kill every process below this one but those of a name; return them, without waiting for their end.

    Python's resource tracker stays: it cleans up the semaphores the others leave behind.
    """
    killed = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name() != spare and not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
                killed.append(child)
    return killed


def kill_engine() -> None:
    """Kill every process of the engine and wait until they are gone. Blocks."""
    psutil.wait_procs(kill_children(spare=PARSER_NAME), timeout=5)
    # What vLLM has ended itself it does not always wait for.
    multiprocessing.active_children()


def end_resource_tracker() -> None:
    """Have Python's resource tracker clean up and end now. Left alone it outlives us by a moment, as an orphan."""
    # There is no public way; it ends by itself when nothing writes to it any more, which is after our own end.
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def _shared_memory(pid: int) -> set[str]:
    """Return the named shared memory a process has mapped."""
    # Intel's OpenMP unmaps its own at once, and removes it only at an orderly end.
    openmp = {f"{_SHARED}__KMP_REGISTERED_LIB_{pid}_0"}
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if _SHARED in line}
    # Semaphores belong to the resource tracker, which complains when it finds them gone.
    return openmp | {path for path in paths if path.startswith(_SHARED) and not path.startswith(f"{_SHARED}sem.")}

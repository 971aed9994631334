"""Watches and kills the child processes of this server: the engine's and all others."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import ClassVar

import psutil

from tokka.engine.supervision.watchdog import Activity

# Names of child processes that do not belong to the engine: of engine/grammars/compiler.py and parsing/worker.py.
COMPILER_NAME = "tokka-grammar"
PARSER_NAME = "tokka-parser"
# Words in the commands of the helpers.
_TRACKER = "resource_tracker"
_HELPERS = ("tokka.engine.grammars", "tokka.parsing", _TRACKER)
# Seconds between two looks whether a start is still wanted while another engine starts.
_TURN_POLL_S = 0.2
_SHARED = "/dev/shm/"  # noqa: S108 - where Linux keeps named shared memory


def activity(pids: Sequence[int] = ()) -> Activity:
    """Return the engine processes' CPU time so far, and the pids of stopped ones.

    `pids`: those that the server has started for the engine; none for all processes of the server but the parsers and
    compilers, which work for requests that are not in flight yet and would make a frozen engine look busy.

    Walks the process table, which takes milliseconds: do not call it on the event loop.
    """
    cpu_s = 0.0
    stopped: list[int] = []
    children = [child for child in psutil.Process().children() if not _is_helper(child)]
    for process in _with_descendants(_of(pids) if pids else children):
        try:
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

    def __init__(self, name_prefix: str, among: Iterable[psutil.Process] | None = None) -> None:
        """`among`: the processes to look at; None for all of this server."""
        self._names: dict[int, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shared: set[str] = set()
        # Name and pid of the first process that has ended since `watch`.
        self.ended: str | None = None
        for process in psutil.Process().children(recursive=True) if among is None else among:
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith(name_prefix) and process.status() != psutil.STATUS_ZOMBIE:
                    pidfd = os.pidfd_open(process.pid)
                    self._names[pidfd] = f"{process.name()} (pid {process.pid})"
                    self._shared |= shared_memory(process.pid)

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


class ProcessGroup:
    """The processes of one engine, among those of several engines of this server.

    One engine starts at a time. While it starts, all processes that no other group has are its own. vLLM tells nobody
    about its processes before the start has ended, and they rename themselves, which overwrites their environment.
    """

    # Held by the group that starts, and all groups that may have processes.
    _turn: ClassVar[threading.Lock] = threading.Lock()
    _groups: ClassVar[weakref.WeakSet[ProcessGroup]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._roots: list[psutil.Process] = []
        self._is_starting = False
        self._groups.add(self)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that the server has started for the engine. Empty until its start has ended."""
        return tuple(root.pid for root in self._roots)

    @property
    def is_alone(self) -> bool:
        """Whether no other engine has been started."""
        return not any(group._roots for group in self._groups if group is not self)

    @contextlib.contextmanager
    def starting(self, check_wanted: Callable[[], None]) -> Iterator[None]:
        """Wait until no other engine starts. Processes that are started within the block belong to this group.

        `check_wanted`: raises if the start was cancelled. Blocks.
        """
        while not self._turn.acquire(timeout=_TURN_POLL_S):
            check_wanted()
        self._is_starting = True
        try:
            yield
        finally:
            # Direct children: the descendants of each are found when they are needed.
            self._roots = [process for process in self._processes(recursive=False) if process.is_running()]
            self._is_starting = False
            self._turn.release()

    def processes(self) -> list[psutil.Process]:
        """Return the processes that run now, descendants included."""
        return self._processes(recursive=True)

    def kill(self) -> None:
        """Kill the processes and wait for their end. Blocks for up to 5 seconds."""
        killed = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
                killed.append(process)
        _, alive = psutil.wait_procs(killed, timeout=5)
        # Reap processes that vLLM ended without waiting for them.
        multiprocessing.active_children()
        self._roots = [root for root in self._roots if root in alive]

    def _processes(self, *, recursive: bool) -> list[psutil.Process]:
        roots = self._roots
        if self._is_starting:
            others = {root for group in self._groups if group is not self for root in group._roots}
            roots = [child for child in psutil.Process().children() if child not in others and not _is_helper(child)]
        return _with_descendants(roots) if recursive else list(roots)


def _with_descendants(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for root in roots:
        with contextlib.suppress(psutil.Error):
            found += [root, *root.children(recursive=True)]
    return found


def _of(pids: Iterable[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            yield psutil.Process(pid)


def _is_helper(process: psutil.Process) -> bool:
    """Return whether a child belongs to no engine: a parser, a compiler, or Python's resource tracker."""
    try:
        if process.name() in (COMPILER_NAME, PARSER_NAME):
            return True
        # A helper has its command before it has its name.
        return any(command in word for word in process.cmdline() for command in _HELPERS)
    except psutil.Error:
        return False


def kill_children() -> None:
    """Kill every descendant process but Python's resource tracker. Does not wait for their end.

    The tracker cleans up the semaphores that the others leave behind.
    """
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not is_tracker(child):
                child.kill()


def is_tracker(process: psutil.Process) -> bool:
    """Return whether a process is a resource tracker of Python. Raises psutil.Error."""
    return any(_TRACKER in word for word in process.cmdline())


def end_resource_tracker() -> None:
    """Make Python's resource tracker clean up and end now. Otherwise it briefly outlives this process as an orphan."""
    # No public API exists. The tracker ends by itself only when its last writer, this process, has ended.
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def shared_memory(pid: int) -> set[str]:
    """Return the paths of the named shared memory that a process has mapped. Of an ended one: what OpenMP may leave."""
    # Intel's OpenMP unmaps its segment at once, but removes it only on an orderly exit.
    openmp = {f"{_SHARED}__KMP_REGISTERED_LIB_{pid}_0"}
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return openmp
    paths = {line.split(maxsplit=5)[5] for line in lines if _SHARED in line}
    # Semaphores belong to the resource tracker, which complains if they are gone.
    return openmp | {path for path in paths if path.startswith(_SHARED) and not path.startswith(f"{_SHARED}sem.")}

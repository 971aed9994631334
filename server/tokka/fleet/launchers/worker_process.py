"""The process of a local worker, whether this gateway has started it or an earlier one."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from typing import Self

from tokka.fleet.launchers.process_tree import ProcessTable, ProcessTree, read_entry

# Waits for a line before it becomes the worker. It ends without one, when the gateway is killed before it has written
# the worker's record. So no worker runs without a record. The pid and the time of the start stay the same.
_GATE = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "tokka-worker")
# The system has no file descriptor or memory left, which says nothing about the process.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Seconds that a cancelled start may take to end. It only has to notice the end of its input.
_CANCEL_S = 5.0


class WorkerProcess:
    """A process and its tree. All through a pidfd, so that no signal reaches another process with a reused pid."""

    def __init__(self, pid: int, pidfd: int, start_ticks: int, tree: ProcessTree) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.tree = tree
        # None: not ended, or unknown because an earlier gateway is its parent. Negative: a signal.
        self.exit_code: int | None = None
        self._pidfd = pidfd
        self._has_ended = False

    @classmethod
    def find(cls, pid: int, start_ticks: int) -> Self | None:
        """Return the process that started at this time; None if it has ended and its pid is free or reused.

        Raises OSError.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            # No process has this pid, or a thread has it.
            return None
        entry = read_entry(pid)
        if entry is None or entry.start_ticks != start_ticks:
            os.close(pidfd)
            return None
        return cls(pid, pidfd, start_ticks, ProcessTree(entry))

    def has_ended(self, within_s: float = 0) -> bool:
        """Return whether it has ended, within the time. The first time, a child is reaped."""
        if not self._has_ended:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(within_s * 1000):
                self._has_ended = True
                self.exit_code = self._reap()
        return self._has_ended

    def terminate(self) -> None:
        """Send SIGTERM to the worker alone. It ends its processes itself."""
        if not self.has_ended():
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def kill(self, table: ProcessTable) -> bool:
        """Send SIGKILL to the whole tree. Return whether all of it has ended. Call it until then."""
        self.tree.update(table)
        all_ended = self.tree.kill()
        return self.has_ended() and all_ended

    def close(self) -> None:
        """Forget the process. It goes on."""
        os.close(self._pidfd)

    def _reap(self) -> int | None:
        try:
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:
            return None
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


class GatedProcess:
    """A started process that does not run the worker's command before `go`."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str], output: int) -> None:
        """`output`: file descriptor of its log. Raises OSError."""
        started = subprocess.Popen(  # noqa: S603
            [*_GATE, *argv],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            bufsize=0,
            # A session of its own: Ctrl-C at the gateway does not reach it, and its processes are found by it.
            start_new_session=True,
        )
        assert started.stdin is not None
        self._gate = started.stdin
        # It exists: it waits, and is not reaped.
        try:
            entry = read_entry(started.pid)
            found = None if entry is None else WorkerProcess.find(entry.pid, entry.start_ticks)
            assert found is not None
        except OSError:
            self._gate.close()
            started.wait()
            raise
        self.process = found
        # WorkerProcess reaps it. Without this line, Popen would, and would warn about a process that goes on.
        started.returncode = 0

    def go(self) -> None:
        """Run the worker's command. Raises OSError if the process has ended already."""
        with self._gate:
            self._gate.write(b"\n")

    def cancel(self) -> None:
        """End the process before it has run anything."""
        self._gate.close()
        self.process.has_ended(_CANCEL_S)
        self.process.close()

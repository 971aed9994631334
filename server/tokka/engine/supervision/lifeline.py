"""Ties a child process to the server: it ends with the server, and not before."""

from __future__ import annotations

import os
import select
import signal
import threading


def end_with(parent_pid: int) -> None:
    """Kill this process when its parent ends, even by SIGKILL, after which vLLM itself leaves orphans.

    Returns at once: a thread watches the parent.
    """
    try:
        pidfd = os.pidfd_open(parent_pid)
    except OSError:
        os._exit(1)
    if os.getppid() != parent_pid:
        os._exit(1)

    def watch() -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll():
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def leave_interrupts_to_the_server() -> None:
    """Ignore SIGINT. Ctrl-C reaches every process of the terminal, but the engine must run while the server drains."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

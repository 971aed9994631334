"""The processes this server has started: the engine's, and theirs."""

from __future__ import annotations

import contextlib

import psutil

from tokka.engine.watchdog import Activity


def activity() -> Activity:
    """Return what all processes below this one have done so far. Walks the process table: milliseconds, so not on the
    event loop."""
    cpu_s = 0.0
    stopped: list[int] = []
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
            # Of children that have ended, too: a compilation is many short processes.
            cpu_s += times.user + times.system + times.children_user + times.children_system
            if process.status() == psutil.STATUS_STOPPED:
                stopped.append(process.pid)
        except psutil.Error:
            # Gone meanwhile.
            continue
    return Activity(cpu_s, tuple(stopped))


def kill_all() -> None:
    """End every process below this one and wait until they are gone. Blocks.

    Python's resource tracker stays: it cleans up the shared memory the others leave behind, and ends with us.
    """
    killed = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()
                killed.append(child)
    psutil.wait_procs(killed, timeout=5)

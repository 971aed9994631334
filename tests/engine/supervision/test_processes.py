"""The activity of the engine's processes and their end, with real processes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.program import eventually
from tokka.engine.supervision.processes import EngineProcesses, ProcessGroup, activity
from tokka.errors import StartupError


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", f"print(flush=True)\n{code}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_computing_shows_as_cpu_time() -> None:
    with child("while True: pass"):
        before = activity().cpu_s
        eventually(lambda: activity().cpu_s > before + 0.2, within_s=20)


def test_computing_of_processes_that_have_ended_counts() -> None:
    code = "import subprocess, sys\nwhile True: subprocess.run([sys.executable, '-c', 'sum(range(10**6))'])"
    with child(code):
        before = activity().cpu_s
        eventually(lambda: activity().cpu_s > before + 0.2, within_s=30)


def test_a_stopped_process_is_named() -> None:
    with child("input()") as process:
        assert process.pid not in activity().stopped
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: process.pid in activity().stopped, within_s=5)


async def ended(processes: EngineProcesses) -> str:
    """Wait until the event loop notices the end of a process."""
    async with asyncio.timeout(20):
        while processes.ended is None:  # noqa: ASYNC110 (the end of a process sets no event)
            await asyncio.sleep(0.001)
    return processes.ended


@pytest.mark.parametrize("ends_first", [False, True])
async def test_engine_processes_notice_an_end(ends_first: bool) -> None:
    with child("input()") as process:
        name = psutil.Process(process.pid).name()
        processes = EngineProcesses(name)
        if not ends_first:
            processes.watch()
            assert processes.ended is None
        process.kill()
        if ends_first:
            process.wait()
            processes.watch()
        assert await ended(processes) == f"{name} (pid {process.pid})"
        processes.close()


async def test_closed_engine_processes_notice_nothing() -> None:
    with child("input()") as process:
        processes = EngineProcesses(psutil.Process(process.pid).name())
        processes.watch()
        processes.close()
        process.kill()
        process.wait()
        await asyncio.sleep(0)
        assert processes.ended is None


def shown_by(script: str) -> str:
    """Run a script in a separate process, and return its output.

    A group has all children of its process that no other group has, and this process has other children.
    """
    start = "import subprocess, sys, psutil\nfrom tokka.engine.supervision.processes import ProcessGroup\n"
    command = [sys.executable, "-c", start + script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def left_after_kill(*arguments: str, frozen: bool = False, early: bool = False) -> bool:
    """Return whether an engine's child outlives its group."""
    script = f"""
group = ProcessGroup()
command = [sys.executable, "-c", "print(flush=True); import sys; sys.stdin.read()", *{arguments!r}]
with group.starting(lambda: None):
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    if {frozen}:
        psutil.Process(child.pid).suspend()
    if {early}:
        group.kill()
group.kill()
print(psutil.pid_exists(child.pid))
"""
    return shown_by(script) == "True"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_all_are_killed_also_a_stopped_one(frozen: bool, early: bool) -> None:
    assert not left_after_kill(frozen=frozen, early=early)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("command", ["resource_tracker", "tokka.parsing.worker", "tokka.engine.grammars.compiler"])
def test_helpers_outlive_an_engine(command: str, early: bool) -> None:
    assert left_after_kill(command, early=early)


def test_engines_keep_their_processes_apart() -> None:
    script = """
def child():
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

def has(group, process):
    return process.pid in {one.pid for one in group.processes()}

first, second = ProcessGroup(), ProcessGroup()
with first.starting(lambda: None):
    one = child()
    early = has(first, one)
with second.starting(lambda: None):
    other = child()
    strange = has(second, one) or has(first, other)
own = [one.pid in first.pids, other.pid in first.pids, other.pid in second.pids]
first.kill()
after_first = [psutil.pid_exists(process.pid) for process in (one, other)]
second.kill()
print(early, strange, own, after_first, psutil.pid_exists(other.pid))
"""
    assert shown_by(script) == "True False [True, False, True] [False, True] False"


def test_a_cancelled_start_does_not_wait_for_another() -> None:
    first, second = ProcessGroup(), ProcessGroup()

    def cancelled() -> None:
        raise StartupError("stopped while starting")

    with first.starting(lambda: None), pytest.raises(StartupError), second.starting(cancelled):
        pass


def test_activity_counts_only_the_engines_processes() -> None:
    with child("while True: pass") as busy, child("input()") as idle:
        before = activity([busy.pid]).cpu_s
        eventually(lambda: activity([busy.pid]).cpu_s > before + 0.2, within_s=20)
        assert activity([idle.pid]).cpu_s < 0.2

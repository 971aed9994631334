"""The local launcher: devices, memory, records, logs and process trees, with small programs as workers."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog

from tests.fleet.gateways import until
from tests.fleet.launchers.contract import SPEC, ended, listed
from tests.marked_processes import processes_with
from tokka.errors import ConfigurationError, StartupError
from tokka.fleet.launchers import local_workers, process_tree, worker_log
from tokka.fleet.launchers.base import LaunchFailed
from tokka.fleet.launchers.local import LocalLauncher
from tokka.fleet.launchers.machine import Machine
from tokka.fleet.launchers.worker_record import WorkerRecord, write_record
from tokka.fleet.spec import ModelSpec, Resources

MIB = 1 << 20
GIB = 1 << 30
SLEEPS = ("sleep", "1000")
NO_FILES = OSError(errno.EMFILE, "Too many open files")


def spec(gpus: int = 0, memory: int | None = None) -> ModelSpec:
    return dataclasses.replace(SPEC, resources=Resources(gpus, memory))


class Bench:
    """Makes launchers over one folder, whose workers run a program of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "workers"
        self.machine = Machine(("4", "5", "GPU-6"), 8 * GIB)
        self.argv: tuple[str, ...] = SLEEPS
        # Finds every process of the test, however it was left.
        self.mark = {"TOKKA_TEST_MARK": str(folder)}
        self.launchers: list[LocalLauncher] = []

    def launcher(self) -> LocalLauncher:
        environment = {**os.environ, **self.mark}
        launcher = LocalLauncher(self.folder, lambda _spec, _worker: (list(self.argv), environment), self.machine)
        self.launchers.append(launcher)
        return launcher

    def python(self, code: str) -> None:
        """Make workers run this Python program."""
        self.argv = (sys.executable, "-c", code)

    def processes(self) -> list[psutil.Process]:
        return processes_with(self.mark)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def record(self, worker: str) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.folder / f"{worker}.json").read_text())
        return found

    async def close(self) -> None:
        await asyncio.gather(*(launcher.close() for launcher in self.launchers))
        left = self.processes()
        for process in left:
            process.kill()
        # Reaps the children of this process.
        await asyncio.to_thread(psutil.wait_procs, left, 10)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def environment_of(pid: int | None) -> dict[str, str]:
    assert pid is not None
    return psutil.Process(pid).environ()


async def kill(launcher: LocalLauncher, worker: str) -> str:
    await launcher.stop(worker, kill=True)
    return await ended(launcher, worker)


# -- devices and memory


async def test_devices_are_handed_out_and_returned(bench: Bench) -> None:
    launcher = bench.launcher()
    assert launcher.capacity == Resources(3, 8 * GIB)
    await launcher.start(spec(gpus=2), "a")
    await launcher.start(spec(gpus=1), "b")
    await launcher.start(spec(), "c")
    with pytest.raises(LaunchFailed, match=r"poro needs resources.gpus 1, but 0 of this machine's 3 GPUs are free"):
        await launcher.start(spec(gpus=1), "d")
    await until(lambda: len([process for process in bench.processes() if process.name() == "sleep"]) == 3)
    seen = {one.worker: environment_of(one.pid)["CUDA_VISIBLE_DEVICES"] for one in await launcher.list()}
    # A value that hides every GPU, since an empty one hides none from HIP.
    assert seen == {"a": "4,5", "b": "GPU-6", "c": "-1"}
    await kill(launcher, "a")
    await launcher.start(spec(gpus=1), "e")
    assert bench.record("e")["devices"] == ["4"]


async def test_devices_stay_taken_after_a_restart_of_the_gateway(bench: Bench) -> None:
    first = bench.launcher()
    await first.start(spec(gpus=2), "a")
    await first.close()
    second = bench.launcher()
    with pytest.raises(LaunchFailed, match=r"needs resources.gpus 2, but 1 of this machine's 3"):
        await second.start(spec(gpus=2), "b")
    bench.launchers.remove(first)


async def test_memory_that_is_not_free_is_refused(bench: Bench) -> None:
    launcher = bench.launcher()
    await launcher.start(spec(memory=5 * GIB), "a")
    with pytest.raises(LaunchFailed, match="memory 4,096 MiB, but 3,072 MiB of this machine's 8,192 MiB are free"):
        await launcher.start(spec(memory=4 * GIB), "b")
    await launcher.start(spec(memory=3 * GIB), "b")
    assert len(await launcher.list()) == 2


ALLOCATES = """
import multiprocessing, time
def work():
    kept = bytearray({size})
    time.sleep(1000)
if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=work).start()
    work()
"""


async def test_memory_limit_ends_the_whole_tree_with_both_numbers(bench: Bench) -> None:
    bench.python(ALLOCATES.format(size=100 * MIB))
    launcher = bench.launcher()
    # Each process alone is below the limit.
    await launcher.start(spec(memory=150 * MIB), "a")
    # Nobody has to ask for the list.
    await until(lambda: not bench.processes(), within_s=30)
    reason = await ended(launcher, "a")
    assert "more than its 150 MiB; raise resources.memory" in reason
    used = int(reason.partition("it used ")[2].partition(" MiB")[0])
    # Whichever look finds it first, while the processes fill their memory.
    assert 150 <= used < 260


async def test_memory_limit_holds_after_a_restart_of_the_gateway(bench: Bench, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    bench.python(f"open({str(go)!r}).read()\n{ALLOCATES.format(size=100 * MIB)}")
    first = bench.launcher()
    await first.start(spec(memory=150 * MIB), "a")
    await first.close()
    bench.launchers.remove(first)
    second = bench.launcher()
    assert [one.ended for one in await second.list()] == [None]
    await asyncio.to_thread(go.write_text, "go")
    assert "more than its 150 MiB" in await ended(second, "a")


async def test_shared_memory_and_files_count_once_or_not(bench: Bench, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(120 * MIB))
    bench.python(f"""
import mmap, multiprocessing, time
shared = mmap.mmap(-1, {100 * MIB})
shared.write(bytes({50 * MIB})); shared.write(bytes({50 * MIB}))
def work():
    shared.find(b"1", 0)
    file = open({str(weights)!r}, "rb")
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(mapped[at] for at in range(0, len(mapped), 4096))
    print("tokka: ready", flush=True)
    time.sleep(1000)
for _ in range(3):
    multiprocessing.get_context("fork").Process(target=work).start()
work()
""")
    launcher = bench.launcher()
    await launcher.start(spec(memory=400 * MIB), "a")
    log = bench.folder / "a.log"
    await until(lambda: log.read_text().count("ready") == 4, within_s=30)
    (worker,) = launcher._workers._workers.values()
    assert worker.process is not None
    launcher._workers.look()
    # The sum of resident pages is above 850 MiB, and 400 MiB without pages of files.
    assert 100 * MIB < worker.process.tree.memory_bytes(0) < 200 * MIB
    assert [one.ended for one in await launcher.list()] == [None]


# -- process trees

# Its children: one in its session, one in a session of its own, and one without a parent. It ends at SIGTERM.
FAMILY = """
import multiprocessing, signal, subprocess, sys, time
from multiprocessing import shared_memory
lock = multiprocessing.get_context("spawn").Lock()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
child = subprocess.Popen(["sleep", "1000"])
open(f"/dev/shm/__KMP_REGISTERED_LIB_{child.pid}_0", "w").close()
subprocess.Popen(["sleep", "1000"], start_new_session=True)
subprocess.run(["sh", "-c", "sleep 1000 & exit"])
memory = shared_memory.SharedMemory(create=True, size=1000)
print(memory.name, f"sem.{lock._semlock.name[1:]}", flush=True)
print("tokka: ready", flush=True)
time.sleep(1000)
"""


async def family(bench: Bench, launcher: LocalLauncher) -> str:
    """Start a worker with children, and return the name of its shared memory."""
    bench.python(FAMILY)
    await launcher.start(spec(), "a")
    log = bench.folder / "a.log"
    await until(lambda: "ready" in log.read_text(), within_s=30)
    assert len(bench.processes()) >= 4
    shared = log.read_text().split()[0]
    assert shared in os.listdir("/dev/shm")
    return shared


async def test_kill_ends_the_whole_tree_and_removes_shared_memory(bench: Bench) -> None:
    launcher = bench.launcher()
    shared = await family(bench, launcher)
    openmp = {f"__KMP_REGISTERED_LIB_{process.pid}_0" for process in bench.processes()}
    assert openmp & set(os.listdir("/dev/shm"))
    log = (bench.folder / "a.log").read_text()
    assert await kill(launcher, "a") == "killed, as the gateway asked"
    assert bench.processes() == []
    # Python's resource tracker has the time to remove it.
    semaphore = next(word for word in log.split() if word.startswith("sem."))
    assert not {shared, semaphore, *openmp} & set(os.listdir("/dev/shm"))
    assert bench.files() == []


async def test_shared_memory_that_another_program_uses_stays(bench: Bench) -> None:
    launcher = bench.launcher()
    shared = await family(bench, launcher)
    # It has the worker's memory mapped, as all programs on a ROCm machine have a file in common.
    with (Path("/dev/shm") / shared).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        (tracker,) = [process for process in bench.processes() if "resource_tracker" in " ".join(process.cmdline())]
        tracker.kill()
        await kill(launcher, "a")
        assert shared in os.listdir("/dev/shm")
    os.unlink(f"/dev/shm/{shared}")


async def test_kill_ends_the_tree_of_an_earlier_gateway(bench: Bench) -> None:
    first = bench.launcher()
    shared = await family(bench, first)
    await first.close()
    bench.launchers.remove(first)
    await kill(bench.launcher(), "a")
    assert bench.processes() == []
    assert shared not in os.listdir("/dev/shm")


async def test_orphans_of_a_crashed_worker_are_killed(bench: Bench) -> None:
    launcher = bench.launcher()
    await family(bench, launcher)
    (worker,) = await launcher.list()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    assert "killed by signal 9" in await ended(launcher, "a")
    assert bench.processes() == []


async def test_frozen_worker_can_be_killed(bench: Bench) -> None:
    launcher = bench.launcher()
    await launcher.start(spec(), "a")
    (worker,) = await launcher.list()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    await kill(launcher, "a")
    assert bench.processes() == []


async def test_second_stop_sends_no_second_signal(bench: Bench) -> None:
    bench.python(
        "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: print('term', flush=True))\n"
        "signal.signal(signal.SIGRTMIN, lambda *_: print('seen', flush=True))\n"
        "print('tokka: ready', flush=True)\nwhile True: time.sleep(1000)"
    )
    first = bench.launcher()
    await first.start(spec(), "a")
    log = bench.folder / "a.log"
    await until(lambda: "ready" in log.read_text(), within_s=30)
    await first.stop("a")
    await until(lambda: "term" in log.read_text())
    await first.stop("a")
    await first.close()
    bench.launchers.remove(first)
    second = bench.launcher()
    await second.stop("a")
    # A signal of a higher number: it is handled after a second SIGTERM.
    (worker,) = await second.list()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGRTMIN)
    await until(lambda: "seen" in log.read_text())
    assert log.read_text().count("term") == 1


# -- ends and their reasons


async def test_failure_is_explained_and_its_log_is_kept(bench: Bench) -> None:
    bench.python("import sys; print('{\"event\": \"starts\"}'); sys.exit('tokka: --model: not found; name a folder')")
    launcher = bench.launcher()
    await launcher.start(spec(), "a")
    kept = bench.folder / "a.failed.log"
    reason = await ended(launcher, "a")
    assert reason == f"ended with exit code 1: --model: not found; name a folder; its log is {kept}"
    assert "starts" in kept.read_text()
    assert bench.files() == ["a.failed.log"]


async def test_log_that_cannot_be_read_does_not_hide_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.python("import sys; sys.exit(3)")
    launcher = bench.launcher()
    await launcher.start(spec(), "a")
    log, opened = bench.folder / "a.log", Path.open

    def without_files(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == log:
            raise NO_FILES
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", without_files)
    assert (await ended(launcher, "a")).startswith("ended with exit code 3; its log is")


async def test_end_is_noticed_although_a_look_found_no_free_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = bench.launcher()
    await launcher.start(spec(), "a")
    remove, failed = process_tree._remove_unused, threading.Event()

    def fail_once(paths: set[str], zombies: set[int]) -> None:
        if not failed.is_set():
            failed.set()
            raise NO_FILES
        remove(paths, zombies)

    monkeypatch.setattr(process_tree, "_remove_unused", fail_once)
    assert await kill(launcher, "a") == "killed, as the gateway asked"
    assert failed.is_set()


async def test_missing_program_is_explained(bench: Bench) -> None:
    bench.argv = ("/missing/tokka",)
    launcher = bench.launcher()
    await launcher.start(spec(), "a")
    assert "/missing/tokka" in await ended(launcher, "a")


async def test_end_with_code_0_leaves_no_log(bench: Bench) -> None:
    bench.argv = ("true",)
    launcher = bench.launcher()
    await launcher.start(spec(), "a")
    assert await ended(launcher, "a") == "ended with exit code 0"
    assert bench.files() == []


async def test_logs_of_failed_workers_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_log, "MAX_FAILED", 2)
    bench.argv = ("false",)
    launcher = bench.launcher()
    for name in "abc":
        await launcher.start(spec(), name)
        await ended(launcher, name)
    assert bench.files() == ["b.failed.log", "c.failed.log"]


async def test_long_log_keeps_its_newer_half(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_log, "MAX_BYTES", 10_000)
    bench.python(
        "import signal, time\nfor number in range(2000): print(f'line {number}', flush=True)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('after', flush=True))\n"
        "print('last', flush=True)\nwhile True: time.sleep(1000)"
    )
    launcher = bench.launcher()
    await launcher.start(spec(), "a")
    log = bench.folder / "a.log"
    await until(lambda: log.read_text().endswith("last\n"), within_s=30)
    (worker,) = await launcher.list()
    lines = log.read_text().splitlines()
    assert lines[-2:] == ["line 1999", "last"]
    assert log.stat().st_size <= 5_000
    # The first line is whole, and the worker's next line goes to the end of the shorter file.
    first = int(lines[0].removeprefix("line "))
    assert lines[:-1] == [f"line {number}" for number in range(first, 2000)]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGUSR1)
    await until(lambda: log.read_text().endswith("last\nafter\n"))


# -- records


async def test_reused_pid_is_not_a_worker(bench: Bench) -> None:
    first = bench.launcher()
    await first.start(spec(), "a")
    await first.close()
    bench.launchers.remove(first)
    ticks = bench.record("a")["start_ticks"]
    assert isinstance(ticks, int)
    # Two processes that start in the same tick of 10 ms differ in their pid alone.
    await until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") > ticks + 2)
    stranger = await asyncio.to_thread(subprocess.Popen, SLEEPS, start_new_session=True)
    try:
        record = bench.record("a") | {"pid": stranger.pid}
        (bench.folder / "a.json").write_text(json.dumps(record))
        second = bench.launcher()
        await second.stop("a", kill=True)
        assert "ended" in await ended(second, "a")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_record_of_an_earlier_boot_is_not_a_worker(bench: Bench) -> None:
    first = bench.launcher()
    await first.start(spec(), "a")
    await first.close()
    bench.launchers.remove(first)
    (bench.folder / "a.json").write_text(json.dumps(bench.record("a") | {"boot": "earlier"}))
    assert "ended" in await ended(bench.launcher(), "a")
    assert len(bench.processes()) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"pid":', '"pid":-'),
        lambda text: text.replace('"pid":', '"pid":99999999999'),
        lambda text: text.replace('"worker":"a"', '"worker":"../b"'),
    ],
    ids=["torn", "empty", "list", "negative_pid", "huge_pid", "other_id"],
)
async def test_invalid_record_is_ignored_and_logged(bench: Bench, change: Callable[[str], str]) -> None:
    first = bench.launcher()
    await first.start(spec(), "a")
    await first.start(spec(), "b")
    await first.close()
    bench.launchers.remove(first)
    path = bench.folder / "a.json"
    path.write_text(change(path.read_text()))
    with structlog.testing.capture_logs() as logged:
        second = bench.launcher()
    assert [line["file"] for line in logged if line["event"] == "worker_record_ignored"] == [str(path)]
    assert [one.worker for one in await second.list()] == ["b"]


async def test_records_and_logs_are_for_their_owner_alone(bench: Bench) -> None:
    launcher = bench.launcher()
    await launcher.start(spec(), "a")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in bench.folder.iterdir()}
    assert modes == {"a.json": "0o600", "a.log": "0o600"}
    assert bench.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("worker", ["../a", "a/b", ".a", "", "a b", "a" * 101])
async def test_id_that_is_not_a_file_name_is_refused(bench: Bench, worker: str) -> None:
    with pytest.raises(LaunchFailed, match="is not the id of a worker"):
        await bench.launcher().start(spec(), worker)


async def test_folder_that_cannot_be_made_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("")
    with pytest.raises(StartupError, match=r"cannot use the folder .* of the local workers"):
        Bench(tmp_path).launcher()


async def test_failed_record_starts_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ran = bench.folder / "ran"
    bench.argv = ("touch", str(ran))
    launcher = bench.launcher()
    monkeypatch.setattr(local_workers, "write_record", fail)
    with pytest.raises(LaunchFailed, match=r"cannot start worker a .*: No space left on device"):
        await launcher.start(spec(), "a")
    assert bench.files() == []
    assert bench.processes() == []


# -- a gateway that is killed

GATEWAY = """
import os, signal, sys
from pathlib import Path
from tests.fleet.launchers.contract import SPEC
from tokka.fleet.launchers import local_workers, worker_process
from tokka.fleet.launchers.machine import Machine
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
folder, ran = Path(sys.argv[1]), sys.argv[2]
argv = ["sh", "-c", 'echo ran > "$0"; exec sleep 1000', ran]
workers = local_workers.LocalWorkers(folder, lambda *_: (argv, dict(os.environ)), Machine(("0",), 1 << 40))
workers.start(SPEC, "a")
die()
"""


def killed_gateway(bench: Bench, ran: Path, patch: str) -> None:
    """Run a gateway that starts a worker and is killed on the way."""
    command = [sys.executable, "-c", GATEWAY.format(patch=patch), str(bench.folder), str(ran)]
    environment = {**os.environ, **bench.mark, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL


async def test_gateway_killed_before_the_record_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    await asyncio.to_thread(killed_gateway, bench, ran, "local_workers.write_record = die")
    await until(lambda: not bench.processes())
    assert not ran.exists()
    assert await bench.launcher().list() == []
    assert bench.files() == []


async def test_gateway_killed_after_the_record_leaves_an_ended_worker(bench: Bench, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    await asyncio.to_thread(killed_gateway, bench, ran, "worker_process.GatedProcess.go = die")
    await until(lambda: not bench.processes())
    assert not ran.exists()
    assert "an earlier gateway had started it" in await ended(bench.launcher(), "a")


async def test_worker_of_a_killed_gateway_is_found_and_its_end_noticed(bench: Bench, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    await asyncio.to_thread(killed_gateway, bench, ran, "")
    launcher = bench.launcher()
    (worker,) = await launcher.list()
    assert worker.ended is None
    await until(ran.exists)
    await launcher.stop("a")
    assert await ended(launcher, "a") == "stopped"
    assert bench.processes() == []


# -- leaks


async def test_20_starts_and_stops_leave_nothing(bench: Bench) -> None:
    launcher = bench.launcher()
    await launcher.start(spec(), "first")
    await kill(launcher, "first")
    before, children = set(os.listdir("/proc/self/fd")), psutil.Process().children()
    for number in range(20):
        await launcher.start(spec(gpus=3), f"w{number}")
        await launcher.stop(f"w{number}", kill=number % 2 == 0)
        await listed(launcher, lambda found: any(one.ended for one in found))
    assert set(os.listdir("/proc/self/fd")) == before
    assert bench.processes() == []
    assert bench.files() == []
    assert psutil.Process().children() == children


async def test_the_event_loop_goes_on_during_a_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_the_loop(folder: Path, record: WorkerRecord) -> None:
        asyncio.run_coroutine_threadsafe(written.wait(), loop).result(10)
        write_record(folder, record)

    launcher = bench.launcher()
    monkeypatch.setattr(local_workers, "write_record", wait_for_the_loop)
    start = asyncio.create_task(launcher.start(spec(), "a"))
    # If the loop waited for the start, this line would not run.
    loop.call_later(0.01, written.set)
    await start
    assert len(await launcher.list()) == 1


async def test_second_gateway_cannot_take_the_workers(bench: Bench) -> None:
    bench.launcher()
    with pytest.raises(ConfigurationError, match="another gateway uses the workers"):
        bench.launcher()
    await bench.launchers.pop().close()
    bench.launcher()

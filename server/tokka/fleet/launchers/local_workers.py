"""The workers of this machine, for `local.py`: their processes, devices, memory, records and logs. All of it blocks."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from tokka.engine.supervision.exits import exit_words
from tokka.errors import ConfigurationError, unreadable
from tokka.fleet.launchers.base import Launched, LaunchFailed
from tokka.fleet.launchers.machine import Machine
from tokka.fleet.launchers.process_tree import ProcessTable
from tokka.fleet.launchers.worker_log import WorkerLog, remove_strays
from tokka.fleet.launchers.worker_process import GatedProcess, WorkerProcess
from tokka.fleet.launchers.worker_record import WorkerRecord, boot_id, read_records, remove_record, write_record
from tokka.fleet.spec import ModelSpec, Resources

log = structlog.get_logger("tokka.fleet")

# Returns the command of a worker and its whole environment, for a model and the worker's id. May raise LaunchFailed.
Command: TypeAlias = Callable[[ModelSpec, str], tuple[list[str], dict[str, str]]]

# Worker ids are names of files.
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_ON_REQUEST = "killed, as the gateway asked"
_MIB = 1 << 20
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class _Worker:
    record: WorkerRecord
    log: WorkerLog
    # None: it had ended before this gateway found its record.
    process: WorkerProcess | None
    # Why it has ended, and whether nobody had asked for that. Set when all its processes have ended.
    ended: str | None = None
    is_failure: bool = False


class LocalWorkers:
    """Use it in one thread at a time."""

    def __init__(self, folder: Path, command: Command, machine: Machine) -> None:
        """Find the workers of an earlier gateway with this folder. Raises StartupError."""
        self._folder = folder
        self._command = command
        self._machine = machine
        self._boot = boot_id()
        self._node = socket.gethostname()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _locked(folder)
            self._workers = {record.worker: self._found(record) for record in read_records(folder)}
            remove_strays(folder, set(self._workers))
        except OSError as error:
            raise unreadable(f"cannot use the folder {folder} of the local workers: {error.strerror}", error) from None

    def start(self, spec: ModelSpec, worker: str) -> None:
        """Raises LaunchFailed."""
        if not _ID.fullmatch(worker):
            raise LaunchFailed(f"{worker!r} is not the id of a worker: use 1 to 100 letters, digits, '.', '_' and '-'")
        self.look()
        if worker in self._workers:
            raise LaunchFailed(f"a worker with the id {worker} exists already")
        devices = self._free_devices(spec)
        self._check_memory(spec)
        argv, environment = self._command(spec, worker)
        try:
            self._start(spec, worker, devices, argv, environment | self._machine.environment(devices))
        except OSError as error:
            raise LaunchFailed(
                f"cannot start worker {worker} of {spec.name}, with its files in {self._folder}: {error.strerror}"
            ) from error

    def listed(self) -> list[Launched]:
        """Return all workers. Forget the ended ones."""
        self.look()
        launched = [self._launched(worker) for worker in self._workers.values()]
        for name, worker in list(self._workers.items()):
            if worker.ended is not None:
                del self._workers[name]
                try:
                    worker.log.remove(is_failure=worker.is_failure)
                    remove_record(self._folder, name)
                except OSError as error:
                    log.warning("worker_files_left", worker=name, folder=str(self._folder), reason=error.strerror)
        return launched

    def stop(self, worker: str, kill: bool) -> None:
        found = self._workers.get(worker)
        if found is None or found.ended is not None or found.process is None:
            return
        if kill:
            if found.record.killed is None:
                self._change(found, killed=_ON_REQUEST)
            self.look()
        elif not found.record.is_stopping:
            found.process.terminate()
            self._change(found, is_stopping=True)

    def look(self) -> None:
        """Notice ends, and hold each worker to its memory and its log to its length."""
        running = [worker for worker in self._workers.values() if worker.ended is None]
        if not running:
            return
        # Asked before the table is read: then no pid of the table is free for another process before the kill.
        ended = [worker.process is not None and worker.process.has_ended() for worker in running]
        try:
            table = ProcessTable.read()
        except OSError as error:
            # The gateway has no file descriptors left. The next look is soon.
            log.warning("workers_not_watched", reason=error.strerror)
            return
        for worker, has_ended in zip(running, ended, strict=True):
            try:
                self._look_at(worker, table, has_ended)
            except OSError as error:
                log.warning("worker_not_watched", worker=worker.record.worker, reason=error.strerror)

    def close(self) -> None:
        """Forget the workers. They go on."""
        for worker in self._workers.values():
            if worker.process is not None and worker.ended is None:
                worker.process.close()
        self._workers = {}
        os.close(self._lock)

    def _found(self, record: WorkerRecord) -> _Worker:
        process = WorkerProcess.find(record.pid, record.start_ticks) if record.boot == self._boot else None
        worker = _Worker(record, WorkerLog(self._folder, record.worker), process)
        if process is None:
            # Its session may be another program's by now, so its processes are left alone. They watch their parent.
            self._note_end(worker, None)
        return worker

    def _start(
        self, spec: ModelSpec, worker: str, devices: tuple[str, ...], argv: list[str], environment: dict[str, str]
    ) -> None:
        worker_log = WorkerLog(self._folder, worker)
        output = worker_log.open()
        try:
            gated = GatedProcess(argv, environment, output)
        except OSError:
            worker_log.remove(is_failure=False)
            raise
        finally:
            os.close(output)
        process = gated.process
        record = WorkerRecord(
            worker=worker,
            model=spec.name,
            revision=spec.revision,
            devices=devices,
            memory_bytes=spec.resources.memory_bytes,
            pid=process.pid,
            start_ticks=process.start_ticks,
            boot=self._boot,
        )
        try:
            write_record(self._folder, record)
            gated.go()
        except OSError:
            gated.cancel()
            remove_record(self._folder, worker)
            worker_log.remove(is_failure=False)
            raise
        self._workers[worker] = _Worker(record, worker_log, process)

    def _free_devices(self, spec: ModelSpec) -> tuple[str, ...]:
        taken = {device for worker in self._holding() for device in worker.record.devices}
        free = [device for device in self._machine.devices if device not in taken]
        if spec.resources.gpus > len(free):
            raise LaunchFailed(
                f"a replica of {spec.name} needs resources.gpus {spec.resources.gpus}, but {len(free)} of this"
                f" machine's {len(self._machine.devices)} GPUs are free"
            )
        return tuple(free[: spec.resources.gpus])

    def _check_memory(self, spec: ModelSpec) -> None:
        taken = sum(worker.record.memory_bytes or 0 for worker in self._holding())
        needed, free = spec.resources.memory_bytes or 0, max(0, self._machine.memory_bytes - taken)
        if needed > free:
            raise LaunchFailed(
                f"a replica of {spec.name} needs resources.memory {_mib(needed)}, but {_mib(free)} of this machine's"
                f" {_mib(self._machine.memory_bytes)} are free"
            )

    def _holding(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.ended is None]

    def _look_at(self, worker: _Worker, table: ProcessTable, has_ended: bool) -> None:
        process = worker.process
        assert process is not None
        if has_ended or worker.record.killed is not None:
            # Its devices are free only when all its processes have ended.
            if process.kill(table):
                process.close()
                self._note_end(worker, process.exit_code)
            return
        process.tree.update(table)
        limit = worker.record.memory_bytes
        # Not by RLIMIT_AS: GPU drivers reserve far more addresses than they use. The kernel ignores RLIMIT_RSS, and
        # RLIMIT_DATA holds for each process alone. A control group would need root or a delegated group.
        if limit is not None and (used := process.tree.memory_bytes(limit)) > limit:
            reason = f"killed: it used {_mib(used)} of memory, more than its {_mib(limit)}; raise resources.memory"
            self._change(worker, killed=reason)
            process.kill(table)
            return
        try:
            worker.log.trim()
        except FileNotFoundError:
            # Somebody has removed it.
            return
        except OSError as error:
            log.warning("worker_log_not_bounded", file=str(worker.log.path), reason=error.strerror)

    def _change(self, worker: _Worker, **changes: Any) -> None:
        """Change a worker's record, also for the next gateway."""
        worker.record = dataclasses.replace(worker.record, **changes)
        try:
            write_record(self._folder, worker.record)
        except OSError as error:
            log.warning("worker_record_not_written", worker=worker.record.worker, reason=error.strerror)

    def _note_end(self, worker: _Worker, code: int | None) -> None:
        record = worker.record
        if record.killed == _ON_REQUEST or (record.is_stopping and code in (0, -signal.SIGTERM, None)):
            worker.ended = record.killed or "stopped"
            return
        worker.is_failure = code != 0
        if record.killed is not None:
            worker.ended = record.killed
        elif code is None:
            worker.ended = "ended, for an unknown reason, because an earlier gateway had started it"
        else:
            worker.ended = exit_words(code)
        if worker.is_failure:
            said = worker.log.reason() if record.killed is None else None
            worker.ended += f"{f': {said}' if said else ''}; its log is {worker.log.kept}"

    def _launched(self, worker: _Worker) -> Launched:
        record = worker.record
        # The clock of `start_ticks`. Nobody sets it, and it goes on while the machine sleeps.
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - record.start_ticks / _TICKS_PER_S
        return Launched(
            worker=record.worker,
            model=record.model,
            revision=record.revision,
            resources=Resources(len(record.devices), record.memory_bytes),
            age_s=max(0.0, age_s) if record.boot == self._boot else 0.0,
            node=self._node,
            pid=record.pid,
            ended=worker.ended,
        )


def _locked(folder: Path) -> int:
    """Lock the folder until the returned file is closed. Raises OSError, ConfigurationError.

    Two gateways would take each other's workers for silent ones, and kill them.
    """
    lock = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ConfigurationError(
            f"another gateway uses the workers of {folder}; stop it, or give this one another --state-dir"
        ) from None
    return lock


def _mib(amount: int) -> str:
    return f"{amount / _MIB:,.0f} MiB"

"""Runs the real program for tests: on a free port, watched through its log, ended by its pid."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

from tests.wire import TLS

TOKKA = Path(sys.executable).with_name("tokka")
# Maximum seconds until the program is ready. A cold engine on a busy machine compiles helpers for a minute.
READY_TIMEOUT_S = 240
EXIT_TIMEOUT_S = 60
# Environment variables that name an unreachable proxy.
NO_SUCH_PROXY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
# The API keys of two tenants.
TENANTS = ("first-tenant-0123456789", "second-tenant-0123456789")


@dataclass(frozen=True)
class LongestTurn:
    """The longest turn of a server's event loop between readiness and end, in seconds of CPU."""

    seconds: float
    command: str


# One entry per server that stopped cleanly. tests/conftest.py checks them when the test run ends.
LONGEST_TURNS: list[LongestTurn] = []
# Maximum CPU seconds of a turn, with requests of any content and number. A longer turn fails the whole test run.
TURN_BOUND_S = 0.05


@dataclass
class Program:
    """A running program, its URL and its log."""

    process: subprocess.Popen[str]
    # A file, because a full pipe without a reader would stop the program.
    errors: IO[str]
    url: str = ""
    model: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    _lines: queue.Queue[dict[str, Any] | None] = field(default_factory=queue.Queue)

    def wait_for(self, event: str, timeout_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Return the next log line with this event; fail if the program ends before."""
        deadline = time.monotonic() + timeout_s
        while True:
            line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            if line is None:
                raise AssertionError(f"ended with {self.process.wait()} before {event!r}: {self.stderr()}")
            if line.get("event") == event:
                return line

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, verify=TLS)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def core(self) -> psutil.Process:
        """Return the process of the real engine."""
        (found,) = [child for child in self.children() if "EngineCore" in child.name() and runs(child)]
        return found

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(EXIT_TIMEOUT_S)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": "not_json", "line": line}
            self.log.append(entry)
            self._lines.put(entry)
        self._lines.put(None)


@contextmanager
def running(
    *arguments: str,
    env: dict[str, str] | None = None,
    wait: bool = True,
    open_files: int | None = None,
) -> Iterator[Program]:
    """Run `tokka serve` with these arguments on a free port, and end it however the test ends."""
    state = tempfile.TemporaryDirectory(prefix="tokka-state-")
    command = [str(TOKKA), "serve", "--port", "0", "--log-format", "json", *arguments]
    if open_files:
        command = ["prlimit", f"--nofile={open_files}", *command]
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below, after the program has ended
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        # The program must not use the user's own database.
        env={**os.environ, "TOKKA_STATE_DIR": state.name, **(env or {})},
        # A separate process group, as in a terminal.
        start_new_session=True,
    )
    program = Program(process, errors)
    reader = threading.Thread(target=program.read, daemon=True)
    reader.start()
    try:
        program.url = program.wait_for("listening")["url"]
        if wait:
            program.model = program.wait_for("ready")["model"]
        yield program
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(timeout=10)
        assert process.stdout is not None
        process.stdout.close()
        errors.close()
        state.cleanup()
        _note_longest_turn(program, " ".join(arguments))


def _note_longest_turn(program: Program, command: str) -> None:
    seconds = [line["longest_turn_s"] for line in program.log if line.get("event") == "stopped"]
    if seconds:
        LONGEST_TURNS.append(LongestTurn(seconds[-1], command))


@contextmanager
def running_together(*commands: tuple[str, ...]) -> Iterator[list[Program]]:
    """Run several programs at once. An engine starts on one core, so two take little longer than one."""
    with ExitStack() as stack:
        programs = [stack.enter_context(running(*arguments, wait=False)) for arguments in commands]
        for program in programs:
            program.model = program.wait_for("ready")["model"]
        yield programs


def failing(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, list[str]]:
    """Run `tokka serve` until it exits; return its exit code and the lines on stderr."""
    with tempfile.TemporaryDirectory(prefix="tokka-state-") as state:
        done = subprocess.run(
            [str(TOKKA), "serve", *arguments],
            capture_output=True,
            text=True,
            timeout=READY_TIMEOUT_S,
            check=False,
            env={**os.environ, "TOKKA_STATE_DIR": state, **(env or {})},
        )
    return done.returncode, done.stderr.splitlines()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def runs(process: psutil.Process) -> bool:
    """Return whether a process still runs. A zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(fact: Callable[[], bool], within_s: float) -> float:
    """Wait until `fact` is true; return the seconds that it took. Fail after `within_s` seconds."""
    began = time.monotonic()
    while not fact():
        elapsed = time.monotonic() - began
        assert elapsed < within_s, f"not within {within_s} s"
        time.sleep(0.02)
    return time.monotonic() - began

"""`tokka worker` as a program, for tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.fleet.gateways import Gateway
from tests.program import EXIT_TIMEOUT_S, TOKKA


@dataclass
class WorkerProgram:
    """A `tokka worker` process."""

    process: subprocess.Popen[str]
    errors: IO[str]

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def events(self) -> list[dict[str, Any]]:
        """Return its log. Call it after the end of the process."""
        assert self.process.stdout is not None
        return [json.loads(line) for line in self.process.stdout]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(EXIT_TIMEOUT_S)

    async def wait(self, within_s: float = EXIT_TIMEOUT_S) -> int:
        """Return the exit code while this process goes on."""
        return await asyncio.to_thread(self.process.wait, within_s)


@contextmanager
def worker_program(
    gateway: Gateway, *arguments: str, prefix: tuple[str, ...] = (), token_file: Path | None = None
) -> Iterator[WorkerProgram]:
    """Run `tokka worker` for a gateway, and end it with all its children."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below, after the program has ended
    command = [*prefix, str(TOKKA), "worker", "--join", str(gateway.address), "--log-format", "json"]
    command += ["--join-token-file", str(token_file or gateway.token_file), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ))
    try:
        yield WorkerProgram(process, errors)
    finally:
        if process.poll() is None:
            # A test may have stopped it.
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()
        errors.close()


FAKE = ("--engine", "fake")

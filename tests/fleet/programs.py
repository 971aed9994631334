"""`tokka worker` as a program, for tests."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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

    async def wait(self, within_s: float = EXIT_TIMEOUT_S) -> int:
        """Return the exit code. This process goes on meanwhile, as a worker's drain needs its gateway."""
        return await asyncio.to_thread(self.process.wait, within_s)

    def end(self) -> None:
        """End the process, however the test has left it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()


def start_worker(
    gateway: Gateway, *arguments: str, prefix: tuple[str, ...] = (), token_file: Path | None = None
) -> WorkerProgram:
    """Start `tokka worker` for a gateway."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `end` closes it
    command = [*prefix, str(TOKKA), "worker", "--join", str(gateway.address), "--log-format", "json"]
    command += ["--join-token-file", str(token_file or gateway.token_file), *arguments]
    return WorkerProgram(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True), errors)


@asynccontextmanager
async def worker_program(gateway: Gateway, *arguments: str, **options: Any) -> AsyncIterator[WorkerProgram]:
    """Run `tokka worker` for a gateway, and end it."""
    program = start_worker(gateway, *arguments, **options)
    try:
        yield program
    finally:
        await asyncio.to_thread(program.end)


FAKE = ("--engine", "fake")

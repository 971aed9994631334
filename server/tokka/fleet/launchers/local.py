"""Runs workers as processes of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from tokka.fleet.launchers.base import Launched
from tokka.fleet.launchers.local_workers import Command, LocalWorkers
from tokka.fleet.launchers.machine import Machine
from tokka.fleet.spec import ModelSpec, Resources

# Seconds between two looks at the workers' memory and logs.
_LOOK_S = 1.0
P = ParamSpec("P")
T = TypeVar("T")


class LocalLauncher:
    """Implements `Launcher`.

    Holds the workers to their memory from the first `start` or `list` on, including workers of an earlier gateway.
    """

    def __init__(self, folder: Path, command: Command, machine: Machine) -> None:
        """Find the workers of an earlier gateway. Blocks. Raises StartupError.

        `folder`: for its records and the workers' logs, used by no other launcher.
        """
        self._machine = machine
        self._workers = LocalWorkers(folder, command, machine)
        # One thread: no two of them start, list and stop at the same time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-workers")
        self._watching: asyncio.Task[None] | None = None

    @property
    def capacity(self) -> Resources:
        return Resources(len(self._machine.devices), self._machine.memory_bytes)

    async def start(self, spec: ModelSpec, worker: str) -> None:
        self._watch()
        await self._aside(self._workers.start, spec, worker)

    async def list(self) -> Sequence[Launched]:
        self._watch()
        return await self._aside(self._workers.listed)

    async def stop(self, worker: str, *, kill: bool = False) -> None:
        await self._aside(self._workers.stop, worker, kill)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._aside(self._workers.close)
        self._thread.shutdown()

    async def _aside(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*arguments, **options))

    def _watch(self) -> None:
        if self._watching is None:
            self._watching = asyncio.create_task(self._look_again())

    async def _look_again(self) -> None:
        while True:
            await self._aside(self._workers.look)
            await asyncio.sleep(_LOOK_S)

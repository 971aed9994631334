"""The engines of one model, as requests see them: which there are, how far they are, and a lease on one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tokka.core import GenerateRequest
from tokka.engine.base import Engine
from tokka.engine.prefixes import Prefix, PrefixIndex
from tokka.engine_facts import EngineStats, ModelInfo, ModelState

# `stopped`: an engine of this process that was not started yet, or was stopped.
State = ModelState | Literal["stopped"]
# States in which a request would be served, or would start a replica.
SERVES = frozenset[State]({"ready", "asleep"})


@dataclass(frozen=True, slots=True)
class Progress:
    """The model's state and phase, for probes and people."""

    state: State
    phase: str
    detail: str
    elapsed_s: float
    retry_after_s: int


class Changes:
    """Tells all that watch a model of each change. `progress`: returns how far the model is."""

    def __init__(self, progress: Callable[[], Progress]) -> None:
        self._progress = progress
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Wake all that watch."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self, every_s: float | None = None) -> AsyncIterator[Progress]:
        """Yield the progress now, at each change, and after `every_s` seconds without a change. Never ends."""
        while True:
            changed = self._changed
            yield self._progress()
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await changed.wait()


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One engine of a model, for lists. `id`: unique within the model."""

    id: str
    progress: Progress
    # Choices that run on it, and choices that wait for it.
    running: int
    waiting: int


@dataclass(eq=False, slots=True)
class Replica:
    """One engine from its readiness to its death."""

    engine: Engine
    info: ModelInfo
    # One more than the deaths of the model's engines before its own.
    number: int
    ready_s: float = field(default_factory=time.monotonic)
    died_s: float | None = None
    # Requests that hold it, and those of them that are not queued.
    leases: int = 0
    admitted: int = 0
    prefixes: PrefixIndex = field(init=False)

    def __post_init__(self) -> None:
        self.prefixes = PrefixIndex(self.info.kv_tokens if self.info.caches_prefixes else None)

    @property
    def load(self) -> float:
        """Requests that hold it, as a share of those it runs at once."""
        return self.leases / self.info.max_running

    @property
    def served_s(self) -> float:
        """Seconds from its readiness to now or to its death."""
        return (time.monotonic() if self.died_s is None else self.died_s) - self.ready_s


@dataclass(eq=False, slots=True)
class Lease:
    """A request's hold on a replica, from its rendering to its end. A replica with a lease is not stopped."""

    replica: Replica
    # The blocks of the request's prompts, and the share of them that the replica has probably cached.
    prefix: Prefix
    is_admitted: bool = False
    _is_held: bool = True

    def __post_init__(self) -> None:
        self.replica.leases += 1
        self.replica.admitted += self.is_admitted

    def admit(self) -> None:
        """Note that the request has been admitted and runs here. Call it once."""
        self.is_admitted = True
        self.replica.admitted += 1

    def release(self) -> None:
        """Give the replica back. Safe to call twice."""
        if self._is_held:
            self._is_held = False
            self.replica.leases -= 1
            self.replica.admitted -= self.is_admitted


class Replicas(Protocol):
    """The engines of one model. A `Supervisor` has one at a time, in this process; a fleet has several."""

    @property
    def is_one(self) -> bool:
        """Whether there is at most one engine, so that no request can move to another."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """The model's properties, with the capacity of all replicas; None until one has been ready."""
        ...

    @property
    def was_ready(self) -> bool: ...

    @property
    def starts_on_demand(self) -> bool:
        """Whether the first request starts the first engine."""
        ...

    @property
    def number(self) -> int:
        """The number of the current engines: one more than those that have died. 0 before the first start."""
        ...

    @property
    def served_s(self) -> float:
        """Seconds that an engine has been ready: the one that became ready last."""
        ...

    def progress(self) -> Progress: ...

    def changes(self, every_s: float | None = None) -> AsyncIterator[Progress]:
        """Yield the progress now, at each change, and after `every_s` seconds without a change. Never ends."""
        ...

    def engine(self) -> Engine:
        """Return an engine for a call that takes no time. Raises ModelStarting."""
        ...

    def lease(self, request: GenerateRequest, *, is_admitted: bool = False) -> Lease:
        """Return a hold on the replica that suits the request best. Raises ModelStarting if none is ready."""
        ...

    def keeps(self, lease: Lease) -> bool:
        """Tell whether a request that was prepared before it queued should run on the replica that it holds."""
        ...

    def others(self, replica: Replica) -> int:
        """Return how many replicas beside this one could serve a request now."""
        ...

    def described(self) -> ModelInfo:
        """Return the model's properties, also during a restart. Raises ModelStarting before the first readiness."""
        ...

    def stats(self) -> EngineStats:
        """Return the sums of all engines."""
        ...

    def workers(self) -> Sequence[WorkerView]:
        """Return all engines, those that start, too."""
        ...

    async def run(self) -> None:
        """Keep the engines running, until cancelled. Raises StartupError."""
        ...

    async def close(self) -> None: ...

"""The interface between the gateway and what runs its workers: this machine, Slurm, Kubernetes or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokka.fleet.spec import ModelSpec, Resources


@dataclass(frozen=True, slots=True)
class Launched:
    """A worker that a launcher has started and not yet forgotten."""

    # The id with which the worker says hello.
    worker: str
    # The spec's name and revision.
    model: str
    revision: str
    # What it takes of the launcher's capacity.
    resources: Resources
    # Seconds since its start, on the launcher's clock.
    age_s: float
    node: str
    # Of the local launcher only.
    pid: int | None = None
    # Why the worker has ended, for the operator. None: it runs, or waits for resources.
    ended: str | None = None


class LaunchFailed(Exception):
    """A worker could not be started. The message is for the operator."""


class Launcher(Protocol):
    """Its methods may be slow; none blocks the event loop. It keeps no state that a restart of the gateway loses."""

    @property
    def capacity(self) -> Resources | None:
        """All that its workers may take together. None: the launcher queues by itself, so a start always fits."""
        ...

    async def start(self, spec: ModelSpec, worker: str) -> None:
        """Start a worker of this model with this id. Raises LaunchFailed."""
        ...

    async def list(self) -> Sequence[Launched]:
        """Return every worker, also of an earlier gateway with the same state. An ended one is returned once."""
        ...

    async def stop(self, worker: str, *, kill: bool = False) -> None:
        """Let the worker drain and end; `kill` ends it and all its processes at once. Unknown workers are ignored."""
        ...

    async def close(self) -> None:
        """Release what the launcher itself holds. The workers go on."""
        ...

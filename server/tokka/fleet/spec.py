"""A model as the fleet file describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LauncherName = Literal["local", "slurm", "kubernetes", "ray"]


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of one replica, or of a launcher. `memory_bytes` None: not limited."""

    gpus: int = 0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One entry of the fleet file."""

    # The served name, and other names for the same model.
    name: str
    aliases: tuple[str, ...]
    # As MODEL of `tokka serve`.
    model: str
    # Settings of `tokka worker`, by their names in its configuration file.
    settings: Mapping[str, Any]
    # A hash of everything that a worker's start depends on. Workers of another revision are replaced.
    revision: str
    launcher: LauncherName = "local"
    min_replicas: int = 0
    max_replicas: int = 1
    # Seconds without a request after which a replica above `min_replicas` stops.
    idle_after_s: float = 300.0
    resources: Resources = field(default_factory=Resources)
    # Line of the entry in the fleet file, for errors.
    line: int = 0

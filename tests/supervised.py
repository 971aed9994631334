"""Builds a supervisor for a test's engines, and waits for its states."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tokka.engine.base import Engine
from tokka.engine.replicas import Progress, Replicas
from tokka.engine.supervision.restart import RestartPolicy
from tokka.engine.supervision.supervisor import Supervisor


def supervisor_of(create_engine: Callable[[], Engine], **changes: Any) -> Supervisor:
    parts: dict[str, Any] = {
        "on_state": lambda _state: None,
        "on_restart": lambda _reason: None,
        "policy": RestartPolicy(5),
        "stall_timeout_s": 20.0,
    }
    return Supervisor(create_engine, **{**parts, **changes})


async def until(supervisor: Replicas, fact: Callable[[Progress], bool]) -> Progress:
    """Return the first progress for which `fact` is true."""
    async with asyncio.timeout(5):
        async for progress in supervisor.changes():
            if fact(progress):
                return progress
    raise AssertionError("the changes ended")


async def until_ready(supervisor: Replicas) -> None:
    await until(supervisor, lambda progress: progress.state == "ready")

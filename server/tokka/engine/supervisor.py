"""Owns one engine: starts it, knows its state and phase, notices its death, stops it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

import structlog

from tokka.core import EngineStats, ModelInfo
from tokka.engine.base import Engine
from tokka.errors import ModelStarting, StartupError

log = structlog.get_logger("tokka.engine")

State = Literal["stopped", "starting", "ready", "failed"]
TRANSITIONS: dict[State, set[State]] = {
    "stopped": {"starting"},
    "starting": {"ready", "failed", "stopped"},
    "ready": {"failed", "stopped"},
    "failed": {"stopped"},
}
RETRY_AFTER_S = 5
_DEATH_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """What the engine is doing, for probes and people."""

    state: State
    phase: str
    detail: str
    elapsed_s: float


class Supervisor:
    def __init__(self, engine: Engine, on_state: Callable[[State], None]) -> None:
        self._engine = engine
        self._on_state = on_state
        self._state: State = "stopped"
        self._phase, self._detail = "not started", ""
        self._since = time.monotonic()
        self._changed = asyncio.Event()
        self._info: ModelInfo | None = None
        self._was_ready = False

    @property
    def info(self) -> ModelInfo | None:
        """What is known of the model; None until the engine has been ready once."""
        return self._info

    @property
    def was_ready(self) -> bool:
        return self._was_ready

    def progress(self) -> Progress:
        return Progress(self._state, self._phase, self._detail, round(time.monotonic() - self._since, 3))

    async def changes(self) -> AsyncIterator[Progress]:
        """Yield the progress now and at each change, until the engine is ready, has failed or was stopped."""
        while True:
            changed = self._changed
            now = self.progress()
            yield now
            if now.state in ("ready", "failed") or now.phase == "stopped":
                return
            await changed.wait()

    def engine(self) -> Engine:
        """Return the engine if it can serve now. Raises ModelStarting."""
        if self._state != "ready":
            raise ModelStarting(
                f"The model is not ready: {self._phase}. Retry in {RETRY_AFTER_S} s.", retry_after_s=RETRY_AFTER_S
            )
        return self._engine

    def stats(self) -> EngineStats:
        return self._engine.stats() if self._state == "ready" else EngineStats()

    async def run(self) -> str:
        """Start the engine and stay with it; return why it died. Raises StartupError."""
        self._since = time.monotonic()
        self._move("starting", "starting")
        loop = asyncio.get_running_loop()

        def report(phase: str, detail: str) -> None:
            # Engines report from their own threads.
            loop.call_soon_threadsafe(self._set_phase, phase, detail)

        try:
            self._info = await self._engine.start(report)
        except StartupError:
            # Probes are open to all; the reason may name files and goes to the operator alone.
            self._move("failed", "failed", "the engine could not be started")
            raise
        except Exception as error:
            self._move("failed", "failed", "the engine could not be started")
            raise StartupError(f"the engine could not be started: {type(error).__name__}: {error}") from error
        self._was_ready = True
        self._move("ready", "ready")
        # An engine cannot be awaited for its death: it may be killed.
        while not (death := self._engine.death()):  # noqa: ASYNC110
            await asyncio.sleep(_DEATH_POLL_S)
        self._move("failed", "failed", "the engine died")
        return death

    async def close(self) -> None:
        await self._engine.close()
        if self._state != "stopped":
            self._move("stopped", "stopped")

    def _move(self, state: State, phase: str, detail: str = "") -> None:
        if state not in TRANSITIONS[self._state]:
            raise RuntimeError(f"the engine cannot go from {self._state} to {state}")
        self._state = state
        self._on_state(state)
        self._set_phase(phase, detail)

    def _set_phase(self, phase: str, detail: str) -> None:
        self._phase, self._detail = phase, detail
        fields = {"detail": detail} if detail else {}
        log.info("engine_phase", state=self._state, phase=phase, elapsed_s=self.progress().elapsed_s, **fields)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

"""Owns the engine: starts it, tracks its state and phase, watches it, restarts it when it dies, and stops it.

An engine object lives from its start to its death; a restart creates a new one. TRANSITIONS below defines the states;
other modules only query them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import structlog

from tokka.core import GenerateRequest
from tokka.engine.base import Engine
from tokka.engine.replicas import Changes, Lease, Progress, Replica, WorkerView
from tokka.engine.supervision import processes
from tokka.engine.supervision.restart import RestartPolicy
from tokka.engine.supervision.watchdog import Observation, Watchdog
from tokka.engine_facts import DeathReason, EngineStats, ModelInfo
from tokka.errors import MAX_RETRY_AFTER_S, ModelStarting, StartupError

log = structlog.get_logger("tokka.engine")

State = Literal["stopped", "starting", "ready", "failed"]
TRANSITIONS: dict[State, set[State]] = {
    "stopped": {"starting"},
    "starting": {"ready", "failed", "stopped"},
    "ready": {"failed", "stopped"},
    # Dead. A restart follows after a delay, or the supervisor has given up.
    "failed": {"starting", "stopped"},
}
# Seconds for Retry-After until a start has been measured, and for an engine that a request has just started: clients
# retry twice, and a small model takes this long.
RETRY_AFTER_S, _ON_DEMAND_RETRY_AFTER_S = 5, 20
_LOOK_EVERY_S = 0.5
# Seconds between an engine's death and a second look at its stats, which then explain it better.
_DETAIL_S = 0.5
_PING_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Death:
    """Why an engine died. The detail is only for the operator, since it may name files."""

    reason: DeathReason
    detail: str


class Supervisor:
    """Keeps an engine running, and gives access to it and its state. Implements `Replicas`."""

    def __init__(
        self,
        create_engine: Callable[[], Engine],
        *,
        on_state: Callable[[State], None],
        on_restart: Callable[[DeathReason], None],
        policy: RestartPolicy,
        stall_timeout_s: float,
        starts_on_demand: bool = False,
        name: str | None = None,
    ) -> None:
        """`starts_on_demand`: the first call of `engine` starts the first engine, instead of `run`.

        `name`: of a model beside the main one, for the log.
        """
        self._log = log if name is None else log.bind(model=name)
        self._create_engine = create_engine
        self._on_state = on_state
        self._on_restart = on_restart
        self._policy = policy
        self._stall_timeout_s = stall_timeout_s
        self._engine: Engine | None = None
        self._closing: asyncio.Task[None] | None = None
        self._state: State = "stopped"
        self._phase, self._detail = "not started", ""
        self._since_s = time.monotonic()
        self._changes = Changes(self.progress)
        self._info: ModelInfo | None = None
        self._starts = 0
        # The current engine from its readiness on, also after its death.
        self._replica: Replica | None = None
        # How long the last measured start took, and when the next one begins while no engine runs.
        self._start_took_s: float | None = None
        self.starts_on_demand = starts_on_demand
        self._first_retry_after_s = _ON_DEMAND_RETRY_AFTER_S if starts_on_demand else RETRY_AFTER_S
        # Set once an engine is wanted.
        self._wanted = asyncio.Event()
        if not starts_on_demand:
            self._wanted.set()
        self._next_start_s = 0.0

    @property
    def is_one(self) -> bool:
        return True

    @property
    def info(self) -> ModelInfo | None:
        """The model's properties; None until the engine has been ready once."""
        return self._info

    @property
    def was_ready(self) -> bool:
        return self._info is not None

    @property
    def number(self) -> int:
        """The number of engines started so far, which is also the number of the current one."""
        return self._starts

    @property
    def served_s(self) -> float:
        """Seconds from the current engine's readiness to now or to its death; 0 before it is ready."""
        return 0.0 if self._replica is None else self._replica.served_s

    def progress(self) -> Progress:
        elapsed_s = round(time.monotonic() - self._since_s, 3)
        if self._state == "ready" and self.stats().death:
            # Probes see the death before the watchdog's next look.
            return Progress("failed", "failed", "the engine died", elapsed_s, self._rebuild_s())
        return Progress(self._state, self._phase, self._detail, elapsed_s, self._retry_after_s())

    def changes(self, every_s: float | None = None) -> AsyncIterator[Progress]:
        """Yield the progress, as `Changes.watch` does."""
        return self._changes.watch(every_s)

    def engine(self) -> Engine:
        """Return the engine if it is ready. Raises ModelStarting if it is not, and starts it if nobody has yet."""
        if self._engine is None or self._state != "ready" or self._engine.stats().death:
            self._wanted.set()
            raise not_ready(self.progress())
        return self._engine

    def lease(self, request: GenerateRequest, *, is_admitted: bool = False) -> Lease:
        """Return a hold on the engine. Raises ModelStarting as `engine` does."""
        self.engine()
        assert self._replica is not None
        return Lease(self._replica, self._replica.prefixes.look(request.cache_salt, request.prompts), is_admitted)

    def keeps(self, lease: Lease) -> bool:
        """Tell whether the engine of this lease can begin a request now."""
        replica = lease.replica
        return replica is self._replica and self._state == "ready" and not replica.engine.stats().death

    def others(self, replica: Replica) -> int:
        return 0

    def described(self) -> ModelInfo:
        """Return the model's properties, also during a restart. Raises ModelStarting before the first readiness."""
        if self._info is None:
            self._wanted.set()
            raise not_ready(self.progress())
        return self._info

    def stats(self) -> EngineStats:
        return self._engine.stats() if self._engine and self._state == "ready" else EngineStats()

    def workers(self) -> list[WorkerView]:
        """Return the current engine, or nothing before the first start. Its id is its number."""
        stats = self.stats()
        one = WorkerView(str(self._starts), self.progress(), stats.running, stats.waiting)
        return [one] if self._starts else []

    async def run(self) -> NoReturn:
        """Keep an engine running. Raises StartupError if the first start fails or too many engines died quickly."""
        await self._wanted.wait()
        while True:
            death = await self._live()
            served_s = self.served_s
            self._move("failed", "failed", "the engine died")
            delay_s = self._policy.delay_s(served_s)
            self._next_start_s = time.monotonic() + (delay_s or 0.0)
            self._log.error("engine_died", reason=death.reason, detail=death.detail, served_s=round(served_s, 1))
            await self._close_engine()
            # vllm/design 5.3.1
            if delay_s is None:
                raise StartupError(
                    f"the engine died {self._policy.quick_deaths}x in a row soon after its start; last cause:"
                    f" {death.detail}"
                )
            self._on_restart(death.reason)
            self._log.info("engine_restarts", reason=death.reason, in_s=delay_s)
            await asyncio.sleep(self._next_start_s - time.monotonic())

    async def close(self) -> None:
        await self._close_engine()
        if self._state != "stopped":
            self._move("stopped", "stopped")

    async def _live(self) -> Death:
        """Start an engine and wait for its death; return why it died. Raises StartupError."""
        self._replica = None
        self._since_s = time.monotonic()
        self._move("starting", "starting")
        self._engine = self._create_engine()
        self._starts += 1
        # Watch from the start: the warm-up requests can hang like any other.
        watching = asyncio.create_task(self._watch(self._engine))
        try:
            self._info = await self._start(self._engine, watching)
            self._replica = Replica(self._engine, self._info, self._starts)
            self._start_took_s = self._replica.ready_s - self._since_s
            self._move("ready", "ready")
            death = await watching
            self._replica.died_s = time.monotonic()
            return death
        except StartupError as error:
            # vllm/design 5.3
            if self._info is None:
                # Anyone can read the probes. The reason may name files, so only the operator gets it.
                self._move("failed", "failed", "the engine could not be started")
                raise
            return Death("start_failed", str(error))
        finally:
            await _end(watching)

    async def _start(self, engine: Engine, watching: asyncio.Task[Death]) -> ModelInfo:
        loop = asyncio.get_running_loop()

        def report(phase: str, detail: str) -> None:
            # Engines report from their own threads.
            loop.call_soon_threadsafe(self._set_phase, phase, detail)

        starting = asyncio.create_task(engine.start(report))
        try:
            await asyncio.wait({starting, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                raise StartupError(f"the engine died during its first requests: {watching.result().detail}")
            return starting.result()
        except StartupError:
            raise
        except Exception as error:
            raise StartupError(f"the engine could not be started: {type(error).__name__}: {error}") from error
        finally:
            await _end(starting)

    async def _watch(self, engine: Engine) -> Death:
        """Look at the engine until it is dead. Awaiting it would not do: it may be killed, or freeze."""
        watchdog = Watchdog(self._stall_timeout_s, time.monotonic())
        async with _Pinging(engine) as pinging:
            while True:
                stats = engine.stats()
                # vllm/design 5.1
                if stats.death:
                    # The cause of a process's end is known a moment after the end itself.
                    await asyncio.sleep(_DETAIL_S)
                    return Death("died", engine.stats().death or stats.death)
                activity = None
                if watchdog.needs_activity:
                    activity = await asyncio.to_thread(processes.activity, stats.pids)
                observation = Observation(
                    stats.steps, stats.unfinished, pinging.answers, pinging.awaits_answer, activity
                )
                # vllm/design 5.1.1
                if stall := watchdog.observe(observation, time.monotonic()):
                    return Death(stall.reason, str(stall))
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _close_engine(self) -> None:
        """Close the engine once, even with several callers or cancelled ones."""
        if self._engine is not None:
            self._closing = asyncio.create_task(self._engine.close())
            self._engine = None
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _retry_after_s(self) -> int:
        """Return the seconds until the engine is probably ready, 1 to 120; 0 if it is ready."""
        if self._state == "ready":
            return 0
        begins_s = self._since_s if self._state == "starting" else self._next_start_s
        return self._rebuild_s(time.monotonic() - begins_s)

    def _rebuild_s(self, begun_s: float = 0.0) -> int:
        """Return the seconds left of a start that began `begun_s` ago, if it takes as long as the last one."""
        if self._start_took_s is None:
            return self._first_retry_after_s
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(self._start_took_s - begun_s)))

    def _move(self, state: State, phase: str, detail: str = "") -> None:
        if state not in TRANSITIONS[self._state]:
            raise RuntimeError(f"the engine cannot go from {self._state} to {state}")
        self._state = state
        self._on_state(state)
        self._set_phase(phase, detail)

    def _set_phase(self, phase: str, detail: str) -> None:
        self._phase, self._detail = phase, detail
        fields: dict[str, object] = {"detail": detail} if detail else {}
        # A server may have several engines, and their processes have the same name.
        if pids := self.stats().pids:
            fields["pids"] = pids
        self._log.info("engine_phase", state=self._state, phase=phase, elapsed_s=self.progress().elapsed_s, **fields)
        self._changes.tell()


def not_ready(now: Progress) -> ModelStarting:
    """Return the error of a request for a model that is not ready."""
    state = "The model was asleep and starts now" if now.state == "asleep" else f"The model is not ready: {now.phase}"
    return ModelStarting(f"{state}. Retry in {now.retry_after_s} s.", retry_after_s=now.retry_after_s)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class _Pinging:
    """Calls the engine every few seconds, because an idle engine's flags prove nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.answers = 0
        self.awaits_answer = False

    async def __aenter__(self) -> _Pinging:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await _end(self._task)

    async def _run(self) -> None:
        while True:
            self.awaits_answer = True
            try:
                await self._engine.ping()
            except Exception as error:
                # A dead engine refuses the call. The next look at its stats shows the death.
                log.debug("ping_failed", error=str(error))
            self.answers += 1
            self.awaits_answer = False
            await asyncio.sleep(_PING_EVERY_S)

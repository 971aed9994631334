"""Carries the plan out: the only one that starts and stops workers. It knows each of them from its start to its end."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import structlog

from tokka.errors import InvalidRequest
from tokka.fleet.launchers.base import Launched, Launcher, LaunchFailed
from tokka.fleet.model import FleetModel, Member
from tokka.fleet.plan import Drain, Start, plan
from tokka.fleet.scaling import Demand, History, ModelView, Replica, note_end, state_of
from tokka.fleet.spec import LauncherName, ModelSpec, Resources

log = structlog.get_logger("tokka.fleet")

# Seconds between two looks: if nothing changes, and at least.
_LOOK_S = 1.0
_LEAST_S = 0.05
# Seconds after which a worker is killed that has not joined since its start, or that has not come back.
_JOIN_S, _REJOIN_S = 300.0, 15.0
# Seconds that a worker has to end after its own drain timeout.
_END_S = 15.0


# Called with a model's name after each start of a worker: it became ready, or it ended before.
OnStart = Callable[[str, Literal["ready", "failed"]], None]


@dataclass(frozen=True, slots=True)
class Load:
    """A model's requests without a replica: their number, and the expected seconds until a new one starts."""

    waiting: int
    wait_s: float


@dataclass(eq=False, slots=True)
class Worker:
    """A worker from its start to its end. `launcher`: None for one that joined by itself."""

    id: str
    model: str
    revision: str
    resources: Resources
    launcher: LauncherName | None
    node: str
    pid: int | None
    started_s: float
    # When it became ready, when it was last connected, and when it was told to drain.
    ready_s: float | None = None
    seen_s: float | None = None
    drains_s: float | None = None
    is_killed: bool = False
    # An earlier gateway has started it.
    is_found: bool = False


@dataclass(eq=False, slots=True)
class Managed:
    """A model, and the memory of the controller about it."""

    replicas: FleetModel
    load: Callable[[], Load]
    # The number that an operator has set.
    fixed: int | None = None
    history: History = field(default_factory=History)
    # Why a worker last ended unasked, for the operator.
    failure: str = ""


def within(fixed: int | None, spec: ModelSpec) -> int | None:
    """Return the number that an operator has set, but not more than the model's maximum."""
    return None if fixed is None else min(fixed, spec.max_replicas)


class Controller:
    """`drain_timeout_s`: seconds that a worker has for its requests if its model has no setting of its own.

    `target_wait_s`: see `plan`.
    """

    def __init__(
        self,
        models: Mapping[str, Managed],
        launchers: Mapping[LauncherName, Launcher],
        on_start: OnStart,
        *,
        drain_timeout_s: float,
        target_wait_s: float,
    ) -> None:
        self.models = models
        self.workers: dict[str, Worker] = {}
        self._launchers = launchers
        self._on_start = on_start
        self._drain_timeout_s = drain_timeout_s
        self._target_wait_s = target_wait_s
        self._is_stopping = False
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: something has changed."""
        self._wake.set()

    def note_drain(self, worker: str) -> None:
        """Note that a worker drains, by its launcher or an operator: its end is no failure."""
        known = self.workers.get(worker)
        if known is not None and known.drains_s is None:
            known.drains_s = time.monotonic()

    async def run(self) -> None:
        """Keep the models at the number of replicas that their requests need, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self._look()
                await self._act()
            except Exception:
                # A launcher that fails must not end the gateway: its replicas serve, and the next look may succeed.
                log.exception("fleet_look_failed")
            # Many changes that come together are one.
            await asyncio.sleep(_LEAST_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()

    async def stop(self) -> None:
        """Drain the workers of this machine, and return when they have ended. Call it after the end of all requests."""
        self._is_stopping, stops_s = True, time.monotonic()
        while True:
            # A start that `run` was cancelled in may have been carried out.
            await self._look()
            here = [worker for worker in self.workers.values() if worker.launcher == "local"]
            if not here:
                return
            for worker in here:
                await self._drain(worker, "stop")
                # Again: `run` may have been cancelled before its own stop of this worker reached it.
                await self._launchers["local"].stop(worker.id)
                worker.drains_s = max(worker.drains_s or 0.0, stops_s)
            await asyncio.sleep(_LEAST_S)

    # -- the operator

    def scale(self, name: str, number: int | None) -> None:
        """Fix the number of replicas; None lets the requests decide again."""
        managed = self.models[name]
        most = max(managed.replicas.spec.max_replicas, 1)
        if number is not None and number > most:
            raise InvalidRequest(f"The maximum of `{name}` is {most}; raise `max` in the fleet file.", param="replicas")
        managed.fixed = number
        self.wake()

    def fixed(self) -> dict[str, int]:
        """Return the numbers that operators have fixed, by model."""
        return {name: one.fixed for name, one in self.models.items() if one.fixed is not None}

    async def drain(self, name: str, worker: str | None) -> None:
        """Drain one worker of a model, or all. New ones replace them as far as the model needs them."""
        found = [one for one in self.workers.values() if one.model == name and worker in (None, one.id)]
        if not found and worker is not None:
            raise InvalidRequest(
                f"`{name}` has no replica `{worker}`; `tokka fleet status` lists them.", param="replica"
            )
        for one in found:
            await self._drain(one, "operator")
        self.wake()

    def update(self, specs: Mapping[str, ModelSpec]) -> None:
        """Take the models' new entries. Replicas of other revisions are replaced one after the other."""
        for name, spec in specs.items():
            managed = self.models[name]
            managed.replicas.spec = spec
            managed.fixed = within(managed.fixed, spec)
        self.wake()

    # -- looking

    async def _look(self) -> None:
        """Learn of started and ended workers."""
        now_s = time.monotonic()
        for name, launcher in self._launchers.items():
            listed = await launcher.list()
            for launched in listed:
                self._see(launched, name, now_s)
            known = {launched.worker for launched in listed}
            for worker in [one for one in self.workers.values() if one.launcher == name and one.id not in known]:
                # Its end was listed once, and the list was lost: `run` was cancelled.
                self._end(worker.id, "its launcher does not know it any more", now_s)
        for managed in self.models.values():
            for member in managed.replicas.members.values():
                self._meet(member, now_s)
        for worker in list(self.workers.values()):
            await self._check(worker, now_s)

    def _see(self, launched: Launched, launcher: LauncherName, now_s: float) -> None:
        if launched.ended is not None:
            self._end(launched.worker, launched.ended, now_s)
        elif launched.worker not in self.workers:
            # Of an earlier gateway.
            self.workers[launched.worker] = Worker(
                id=launched.worker,
                model=launched.model,
                revision=launched.revision,
                resources=launched.resources,
                launcher=launcher,
                node=launched.node,
                pid=launched.pid,
                started_s=now_s - launched.age_s,
                is_found=True,
            )
            log.info("worker_found", worker=launched.worker, model=launched.model, launcher=launcher)
        else:
            self.workers[launched.worker].pid = launched.pid

    def _meet(self, member: Member, now_s: float) -> None:
        """Note a worker that is connected."""
        hello = member.worker.hello
        worker = self.workers.get(hello.worker)
        if worker is None:
            # Started by hand: it serves beside the workers of the plan, which neither counts nor stops it.
            revision = self.models[hello.model].replicas.spec.revision
            worker = Worker(
                hello.worker, hello.model, revision, Resources(), None, hello.node, hello.pid, started_s=now_s
            )
            self.workers[hello.worker] = worker
        worker.seen_s = now_s
        worker.node = hello.node
        if member.replica is not None and worker.ready_s is None:
            worker.ready_s = now_s
            self.models[worker.model].failure = ""
            replicas = self.models[worker.model].replicas
            # The age of a worker from before this gateway is no duration of a start.
            if worker.launcher is not None and not worker.is_found:
                replicas.start_took_s = now_s - worker.started_s
                self._on_start(worker.model, "ready")
            replicas.start_began_s = None

    async def _check(self, worker: Worker, now_s: float) -> None:
        """Kill a worker that does not join, come back or end in time; forget one that came by itself and left."""
        is_connected = self._member(worker) is not None
        if worker.launcher is None:
            if not is_connected:
                del self.workers[worker.id]
            return
        if worker.model not in self.models:
            # Of a model that the file does not have any more.
            await self._drain(worker, "removed")
        unseen_s = now_s - worker.started_s if worker.seen_s is None else now_s - worker.seen_s
        late = "it did not join" if worker.seen_s is None else "it was silent and did not come back"
        if worker.drains_s is not None:
            is_late, late = now_s - worker.drains_s > self._drain_s(worker) + _END_S, "it did not end"
        else:
            is_late = not is_connected and unseen_s > (_JOIN_S if worker.seen_s is None else _REJOIN_S)
        if is_late and not worker.is_killed:
            log.error("worker_killed", worker=worker.id, model=worker.model, reason=late)
            worker.is_killed = True
            await self._launchers[worker.launcher].stop(worker.id, kill=True)

    def _drain_s(self, worker: Worker) -> float:
        """Return the maximum seconds for which a draining worker has requests."""
        if self._is_stopping:
            return 0.0
        managed = self.models.get(worker.model)
        own = managed.replicas.spec.settings.get("drain_timeout") if managed is not None else None
        return self._drain_timeout_s if own is None else float(own)

    def _end(self, worker: str, reason: str, now_s: float) -> None:
        """Note a worker whose process has ended."""
        known = self.workers.pop(worker, None)
        if known is None or known.drains_s is not None:
            log.info("worker_ended", worker=worker, reason=reason)
            return
        log.error("worker_ended", worker=worker, model=known.model, reason=reason)
        if (managed := self.models.get(known.model)) is not None:
            managed.failure = reason
            ready_s = 0.0 if known.ready_s is None else now_s - known.ready_s
            managed.history = note_end(managed.history, ready_s, now_s)
            if known.ready_s is None:
                managed.replicas.start_began_s = None
                self._on_start(known.model, "failed")

    # -- acting

    async def _act(self) -> None:
        now_s = time.monotonic()
        views = [self._view(managed, now_s) for managed in self.models.values()]
        capacity = {name: self._capacity(name) for name in self._launchers}
        decided = plan(views, capacity, self._target_wait_s, now_s)
        for name, history in decided.histories.items():
            managed = self.models[name]
            managed.history = history
            managed.replicas.hold_back(decided.yielding)
        for action in decided.actions:
            if isinstance(action, Drain):
                # Before the first wait: a request could take the replica while another worker starts.
                self.models[self.workers[action.worker].model].replicas.leave(action.worker)
        for action in decided.actions:
            match action:
                case Start(model):
                    await self._start(self.models[model], now_s)
                case Drain(worker, reason):
                    await self._drain(self.workers[worker], reason)
        for managed in self.models.values():
            state = state_of(self._view(managed, now_s))
            is_stopped = state == "asleep" and managed.fixed == 0
            managed.replicas.set_state("stopped" if is_stopped else state)

    def _capacity(self, name: LauncherName) -> Resources | None:
        """Return all that the file's models may take. Workers of a removed model keep theirs until they end."""
        total = self._launchers[name].capacity
        if total is None:
            return None
        removed = [
            one.resources for one in self.workers.values() if one.launcher == name and one.model not in self.models
        ]
        memory_bytes = total.memory_bytes
        if memory_bytes is not None:
            memory_bytes -= sum(one.memory_bytes or 0 for one in removed)
        return Resources(total.gpus - sum(one.gpus for one in removed), memory_bytes)

    def _view(self, managed: Managed, now_s: float) -> ModelView:
        replicas, load = managed.replicas, managed.load()
        name = replicas.spec.name
        planned = [one for one in self.workers.values() if one.model == name and one.launcher is not None]
        seen = tuple(map(self._replica, planned))
        demand = Demand(load.waiting, load.wait_s, replicas.idle_s, replicas.missed_s)
        return ModelView(replicas.spec, seen, demand, managed.fixed, managed.history)

    def _replica(self, worker: Worker) -> Replica:
        member = self._member(worker)
        replica = member.replica if member is not None else None
        return Replica(
            worker.id,
            "draining" if worker.drains_s is not None else "ready" if replica is not None else "starting",
            worker.revision,
            worker.resources,
            leases=replica.leases if replica is not None else 0,
            ready_s=replica.served_s if replica is not None else 0.0,
        )

    async def _start(self, managed: Managed, now_s: float) -> None:
        spec = managed.replicas.spec
        # Names of models may hold slashes; the id names files.
        stem = re.sub(r"[^A-Za-z0-9.-]", "-", spec.name).lstrip("-.")[:40]
        worker = f"{stem or 'model'}-{secrets.token_hex(4)}"
        log.info("worker_starts", worker=worker, model=spec.name, launcher=spec.launcher)
        managed.replicas.start_began_s = now_s
        try:
            await self._launchers[spec.launcher].start(spec, worker)
        except LaunchFailed as error:
            log.error("worker_not_started", worker=worker, model=spec.name, reason=str(error))
            managed.failure = str(error)
            managed.replicas.start_began_s = None
            managed.history = note_end(managed.history, 0.0, now_s)
            self._on_start(spec.name, "failed")
            return
        self.workers[worker] = Worker(
            worker, spec.name, spec.revision, spec.resources, spec.launcher, "", None, started_s=now_s
        )

    async def _drain(self, worker: Worker, reason: str) -> None:
        if worker.drains_s is not None:
            return
        worker.drains_s = time.monotonic()
        log.info("worker_drains", worker=worker.id, model=worker.model, reason=reason)
        if self._member(worker) is not None:
            self.models[worker.model].replicas.leave(worker.id)
        if worker.launcher is not None:
            # First, also of a connected one: its launcher cannot tell otherwise that its end was wanted.
            await self._launchers[worker.launcher].stop(worker.id)
        if (member := self._member(worker)) is not None:
            member.worker.drain()

    def _member(self, worker: Worker) -> Member | None:
        managed = self.models.get(worker.model)
        return managed.replicas.members.get(worker.id) if managed is not None else None

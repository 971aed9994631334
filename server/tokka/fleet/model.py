"""The replicas of one model of the fleet, as requests see them. Their number is the controller's business."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal

from tokka.core import GenerateRequest
from tokka.engine.base import Engine
from tokka.engine.prefixes import blocks_of
from tokka.engine.remote.engine import RemoteEngine
from tokka.engine.replicas import Changes, Lease, Progress, Replica, State, WorkerView
from tokka.engine.supervision.supervisor import not_ready
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import MAX_RETRY_AFTER_S
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.routing import Candidate, choose, stays
from tokka.fleet.spec import ModelSpec

# Seconds for Retry-After until a start of this model has been measured.
_START_S = 20.0
# Seconds in which the requests of a dead engine report its death.
_REPORT_S = 0.1
# Seconds for which the controller knows that a request found no replica. A flood of them must not keep it busy.
_MISS_S = 0.5


@dataclass(eq=False, slots=True)
class Member:
    """A worker that has joined, and its engine once that is ready."""

    worker: RemoteWorker
    replica: Replica | None = None
    joined_s: float = field(default_factory=time.monotonic)
    # It takes no new requests: the gateway has asked it to drain, or another model waits for its resources.
    is_leaving: bool = False
    is_held_back: bool = False

    @property
    def state(self) -> Literal["starting", "ready", "draining"]:
        """The worker's state for people. One whose connection has ended is no member."""
        return "draining" if self.is_leaving or self.worker.state == "gone" else self.worker.state

    @property
    def takes_requests(self) -> bool:
        is_open = self.worker.state == "ready" and not (
            self.is_leaving or self.is_held_back or self.worker.engine.is_over
        )
        return self.replica is not None and is_open


class FleetModel:
    """Implements `Replicas`. `on_change`: called after each change of the replicas or of the model's state."""

    is_one = False

    def __init__(self, spec: ModelSpec, on_change: Callable[[], None]) -> None:
        self.spec = spec
        self._on_change = on_change
        # By the worker's id.
        self.members: dict[str, Member] = {}
        self._info: ModelInfo | None = None
        self._deaths = 0
        self._preemptions = 0
        self._state: State = "starting" if spec.min_replicas else "asleep"
        self._since_s = time.monotonic()
        # When a request last found no replica, and when one last held a replica; None: never.
        self._missed_s: float | None = None
        self._used_s = time.monotonic()
        # Seconds that the last start took, and when the current one began.
        self.start_took_s: float | None = None
        self.start_began_s: float | None = None
        self._changes = Changes(self.progress)

    # -- Replicas

    @property
    def info(self) -> ModelInfo | None:
        return self._info

    @property
    def starts_on_demand(self) -> bool:
        return self.spec.min_replicas == 0

    @property
    def was_ready(self) -> bool:
        return self._info is not None

    @property
    def number(self) -> int:
        return self._deaths + 1 if self._info is not None else 0

    @property
    def served_s(self) -> float:
        return min((replica.served_s for replica in self._replicas()), default=0.0)

    def progress(self) -> Progress:
        elapsed_s = round(time.monotonic() - self._since_s, 3)
        if self._open():
            return Progress("ready", "ready", "", elapsed_s, 0)
        state = self._state
        if state == "ready":
            # Its replicas yield to another model, or the controller has not noticed yet that the last one is gone.
            state = "draining" if self._replicas() else "starting"
        starting = next((member.worker for member in self.members.values() if member.worker.state == "starting"), None)
        phase, detail = (starting.phase, starting.detail) if starting else (state, "")
        if state == "stopped":
            phase = "stopped by the operator"
        return Progress(state, phase, detail, elapsed_s, self._retry_after_s())

    def changes(self, every_s: float | None = None) -> AsyncIterator[Progress]:
        return self._changes.watch(every_s)

    def engine(self) -> Engine:
        return min(self._found(), key=attrgetter("load")).engine

    def lease(self, request: GenerateRequest, *, is_admitted: bool = False) -> Lease:
        self._used_s = time.monotonic()
        replicas = self._found()
        # Hash the prompt once, not for each replica.
        blocks = blocks_of(request.cache_salt, request.prompts) if self._info and self._info.caches_prefixes else []
        prefixes = [replica.prefixes.look_for(blocks) for replica in replicas]
        candidates = [
            Candidate(replica.admitted if is_admitted else replica.leases, replica.info.max_running, prefix.share)
            for replica, prefix in zip(replicas, prefixes, strict=True)
        ]
        at = choose(candidates)
        return Lease(replicas[at], prefixes[at], is_admitted)

    def keeps(self, lease: Lease) -> bool:
        replica = lease.replica
        if replica.died_s is not None:
            return False
        replicas = self._open()
        if replica not in replicas or len(replicas) == 1:
            # A draining one runs its prepared requests.
            return True
        others = [
            (Candidate(one.leases, one.info.max_running, 0.0), one.admitted) for one in replicas if one is not replica
        ]
        own = Candidate(replica.leases, replica.info.max_running, lease.prefix.share)
        return stays(own, replica.admitted, others)

    def others(self, replica: Replica) -> int:
        return sum(other is not replica for other in self._open())

    def described(self) -> ModelInfo:
        if self._info is None:
            self._found()
        assert self._info is not None
        return self._info

    def stats(self) -> EngineStats:
        every = [member.worker.engine.stats() for member in self.members.values() if member.replica is not None]
        likely = min(self._open(), key=attrgetter("load"), default=None)
        return EngineStats(
            running=sum(one.running for one in every),
            waiting=sum(one.waiting for one in every),
            kv_cache_usage=max((one.kv_cache_usage for one in every), default=0.0),
            unfinished=sum(one.unfinished for one in every),
            steps=sum(one.steps for one in every),
            preemptions=self._preemptions + sum(one.preemptions for one in every),
            # Of the replica that the next request would probably get.
            costs=likely.engine.stats().costs if likely is not None else None,
        )

    def workers(self) -> list[WorkerView]:
        """Return the workers that have joined."""
        return [self._view(worker, member) for worker, member in self.members.items()]

    async def run(self) -> None:
        """Wait until cancelled: the controller keeps the replicas running."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """End the open requests, and take no more. The controller stops the workers."""
        for worker, member in list(self.members.items()):
            self.leave(worker)
            await member.worker.engine.close()

    # -- the controller

    @property
    def leases(self) -> int:
        """Requests that hold a replica."""
        return sum(replica.leases for replica in self._replicas())

    @property
    def missed_s(self) -> float | None:
        """Seconds since a request last found no replica. None: never, or one has found a replica since."""
        return None if self._missed_s is None else time.monotonic() - self._missed_s

    @property
    def idle_s(self) -> float:
        """Seconds since a request last held a replica, or asked for one. 0 while one does."""
        if self.leases:
            self._used_s = time.monotonic()
        return time.monotonic() - self._used_s

    def take(self, worker: RemoteWorker) -> None:
        """Note a worker that has joined, or a change of its state."""
        member = self.members.get(worker.hello.worker)
        if member is None or member.worker is not worker:
            if worker.state == "gone":
                return
            if member is not None:
                self._end(member)
            member = self.members[worker.hello.worker] = Member(worker)
        if member.replica is not None and member.replica.engine is not worker.engine:
            self._end(member)
        match worker.state:
            case "ready" if member.replica is None and worker.info is not None:
                member.replica = Replica(worker.engine, worker.info, self.number or 1)
            case "gone":
                self._end(member)
                del self.members[worker.hello.worker]
        self._describe()
        self.changed()

    def leave(self, worker: str) -> None:
        """Give a worker no more requests. The requests that hold it finish on it."""
        if (member := self.members.get(worker)) is not None and not member.is_leaving:
            member.is_leaving = True
            self._describe()
            self.changed()

    def hold_back(self, workers: Set[str]) -> None:
        """Give these workers no new requests for now, and all others some again."""
        for worker, member in self.members.items():
            if member.is_held_back != (worker in workers):
                member.is_held_back = worker in workers
                self._describe()
                self.changed()

    def set_state(self, state: State) -> None:
        """Note the model's state as long as no replica is ready."""
        if state != self._state:
            self._state = state
            self._since_s = time.monotonic()
            self.changed()

    def changed(self) -> None:
        """Wake all that wait for a change."""
        self._on_change()
        self._changes.tell()

    # -- parts

    def _replicas(self) -> list[Replica]:
        return [member.replica for member in self.members.values() if member.replica is not None]

    def _open(self) -> list[Replica]:
        """Return the replicas that take requests."""
        return [member.replica for member in self.members.values() if member.replica and member.takes_requests]

    def _view(self, worker: str, member: Member) -> WorkerView:
        state = member.state
        starts = state == "starting"
        progress = Progress(
            state,
            member.worker.phase if starts else state,
            member.worker.detail if starts else "",
            round(time.monotonic() - member.joined_s, 3),
            self._retry_after_s() if starts else 0,
        )
        stats = member.worker.engine.stats()
        return WorkerView(worker, progress, stats.running, stats.waiting)

    def _found(self) -> Sequence[Replica]:
        """Return the replicas that take requests. Raises ModelStarting if there are none."""
        if found := self._open():
            # Not when the replica became ready: until its client is back, another model must not take it away.
            self._missed_s = None
            return found
        is_known = self._missed_s is not None and time.monotonic() - self._missed_s < _MISS_S
        self._missed_s = time.monotonic()
        if not is_known:
            # The controller may have to start one.
            self._on_change()
        raise not_ready(self.progress())

    def _end(self, member: Member) -> None:
        """Note that a worker's engine is gone."""
        replica, member.replica = member.replica, None
        if replica is None:
            return
        replica.died_s = time.monotonic()
        self._preemptions += replica.engine.stats().preemptions
        if isinstance(replica.engine, RemoteEngine) and replica.engine.has_died:
            # Not at once: all requests of this replica report the same death first.
            asyncio.get_running_loop().call_later(_REPORT_S, self._count_death)

    def _count_death(self) -> None:
        """Give the other engines a later number than the dead one had."""
        self._deaths += 1
        for replica in self._replicas():
            replica.number = self.number

    def _describe(self) -> None:
        """Renew the sum of all replicas that take requests. Without any, the last one stays."""
        every = [replica.info for replica in self._open()]
        if every:
            self._info = replace(
                every[0],
                max_model_len=min(info.max_model_len for info in every),
                max_running=sum(info.max_running for info in every),
                step_tokens=_sum([info.step_tokens for info in every]),
                kv_tokens=_sum([info.kv_tokens for info in every]),
                copies=sum(info.copies for info in every),
                gpus=sum(info.gpus for info in every),
            )

    def _retry_after_s(self) -> int:
        took_s = _START_S if self.start_took_s is None else self.start_took_s
        begun_s = 0.0 if self.start_began_s is None else time.monotonic() - self.start_began_s
        # A start that takes longer than the last one: a quarter of the time so far, not a second again and again.
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(max(took_s - begun_s, begun_s / 4))))


def _sum(numbers: Sequence[int | None]) -> int | None:
    """Return the sum; None if one of them has no limit."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None

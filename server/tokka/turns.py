"""Fair queue between tenants for jobs of a scarce helper, like rendering threads or parser processes.

It uses start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). A job's start tag is the maximum of the queue's
virtual time and the end tag of the same tenant's previous job. The job with the lowest start tag is next. A tenant gets
its share of the work regardless of the load of others, and an idle tenant saves up nothing.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokka.errors import ServerOverloaded

T = TypeVar("T")
_RETRY_AFTER_S = 2.0
# Maximum tenants with a stored end tag.
_MAX_TENANTS = 10_000


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limits of a queue.

    `places`: jobs handed out at once. `long_places`: how many of them may be long, that is cost `long_cost` or more.
    `waiting_cost`: maximum total cost of waiting jobs, and half of it for one tenant.
    """

    places: int
    long_places: int
    long_cost: float
    waiting_cost: float


@dataclass(order=True, slots=True)
class _Job:
    start: float
    number: int
    tenant: str = field(compare=False)
    cost: float = field(compare=False)
    turn: Any = field(compare=False)
    left: bool = field(default=False, compare=False)


class TurnQueue:
    """Picks the next job. Pure. Costs are in any one unit, for example bytes."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._virtual = 0.0
        self._ends: dict[str, float] = {}
        # Keyed by whether the job is long.
        self._waiting: dict[bool, list[_Job]] = {False: [], True: []}
        self._waiting_of: dict[str, float] = {}
        self._running = {False: 0, True: 0}
        self._count = 0

    def put(self, tenant: str, cost: float, turn: Any) -> _Job:
        """Queue a job. Raises ServerOverloaded if the waiting jobs would cost too much."""
        waiting = sum(self._waiting_of.values())
        own = self._waiting_of.get(tenant, 0.0)
        # If no job waits, a job of any cost may.
        if waiting and (
            waiting + cost > self._capacity.waiting_cost or (own and own + cost > self._capacity.waiting_cost / 2)
        ):
            raise ServerOverloaded("The server has too many requests to prepare.", retry_after_s=_RETRY_AFTER_S)
        self._count += 1
        job = _Job(max(self._virtual, self._ends.get(tenant, 0.0)), self._count, tenant, cost, turn)
        self._set_end(tenant, job.start + cost)
        self._waiting_of[tenant] = own + cost
        heapq.heappush(self._waiting[self._is_long(cost)], job)
        return job

    def next(self) -> _Job | None:
        """Return the next job and count it as running. Return None if no job may run now."""
        short, long = self._head(long=False), self._head(long=True)
        if sum(self._running.values()) >= self._capacity.places:
            return None
        if self._running[True] >= self._capacity.long_places:
            long = None
        job = min((job for job in (short, long) if job is not None), default=None)
        if job is not None:
            is_long = self._is_long(job.cost)
            heapq.heappop(self._waiting[is_long])
            self._running[is_long] += 1
            self._virtual = max(self._virtual, job.start)
            self._no_longer_waits(job)
        return job

    def done(self, job: _Job) -> None:
        """Free the place of a running job."""
        self._running[self._is_long(job.cost)] -= 1

    def leave(self, job: _Job) -> None:
        """Remove a waiting job after its owner has gone."""
        job.left = True
        self._no_longer_waits(job)

    def _head(self, *, long: bool) -> _Job | None:
        waiting = self._waiting[long]
        while waiting and waiting[0].left:
            heapq.heappop(waiting)
        return waiting[0] if waiting else None

    def _is_long(self, cost: float) -> bool:
        return cost >= self._capacity.long_cost

    def _no_longer_waits(self, job: _Job) -> None:
        left = self._waiting_of[job.tenant] - job.cost
        if left > 0:
            self._waiting_of[job.tenant] = left
        else:
            del self._waiting_of[job.tenant]

    def _set_end(self, tenant: str, end: float) -> None:
        self._ends.pop(tenant, None)
        self._ends[tenant] = end
        if len(self._ends) > _MAX_TENANTS:
            del self._ends[next(iter(self._ends))]


class FairTurns:
    """Hands out jobs in the queue's order, one per place at a time. Belongs to one event loop.

    Between the end of a job and the next one for its place passes a turn of the event loop. On a busy server that takes
    longer than a short job, so a helper needs more places than it works on at once.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._queue = TurnQueue(capacity)
        self._running: set[asyncio.Future[Any]] = set()

    async def run(self, tenant: str, cost: float, start: Callable[[], Awaitable[T]]) -> T:
        """Wait for the job's turn, call `start`, and return its result. Raises ServerOverloaded.

        A cancelled caller gives up its turn if it is still waiting. A started job runs to its end and holds its place
        until then, because a thread cannot be stopped.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job = self._queue.put(tenant, cost, turn)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # The job got its turn just before the cancellation.
                self._end(job)
            elif not job.left:
                self._queue.leave(job)
            raise
        running = asyncio.ensure_future(_started(start))
        self._running.add(running)
        running.add_done_callback(lambda _: self._ended(job, running))
        return await asyncio.shield(running)

    def _hand_out(self) -> None:
        while (job := self._queue.next()) is not None:
            if job.turn.cancelled():
                # The owner was cancelled but has not run since.
                job.left = True
                self._queue.done(job)
            else:
                job.turn.set_result(None)

    def _ended(self, job: _Job, running: asyncio.Future[Any]) -> None:
        self._running.discard(running)
        if not running.cancelled():
            # The caller may have left. Retrieve the error, or asyncio logs it as never retrieved.
            running.exception()
        self._end(job)

    def _end(self, job: _Job) -> None:
        self._queue.done(job)
        self._hand_out()


async def _started(start: Callable[[], Awaitable[T]]) -> T:
    return await start()

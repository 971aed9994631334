"""Decides how many replicas of one model to run. Pure: the time is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from tokka.engine_facts import ModelState
from tokka.errors import MAX_RETRY_AFTER_S
from tokka.fleet.backoff import STEADY_S, Backoff
from tokka.fleet.spec import ModelSpec, Resources

# Seconds for which the predicted wait must exceed the target before a replica is added.
_SLOW_S = 10.0
# Seconds for which a request that found no ready replica counts. By then its client has retried or given up.
_ASK_S = MAX_RETRY_AFTER_S + 30.0


@dataclass(frozen=True, slots=True)
class Replica:
    """A worker that was started and has not ended. Before it has joined, it is `starting`."""

    id: str
    state: Literal["starting", "ready", "draining"]
    revision: str
    # What its launcher gave it; another revision may need more.
    resources: Resources
    # Requests that hold it, queued or running.
    leases: int = 0
    # Seconds since it became ready; 0 before.
    ready_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """The requests of one model."""

    # Requests without a replica: queued, or held while one starts.
    waiting: int = 0
    # Predicted wait of a request that arrives now; 0 if it would run at once.
    wait_s: float = 0.0
    # Seconds since the last request ended; 0 while one is open, infinite before the first.
    idle_s: float = math.inf
    # Seconds since a request last found no ready replica. None: never, or a request was served since.
    asked_s: float | None = None

    @property
    def is_expected(self) -> bool:
        """Whether a client that found no ready replica will probably come back."""
        return self.asked_s is not None and self.asked_s < _ASK_S


@dataclass(frozen=True, slots=True)
class History:
    """The memory of the plan about one model, from call to call."""

    # Replicas wanted. None: not decided yet, so the replicas seen are kept.
    wanted: int | None = None
    # Since when the predicted wait exceeds its target.
    slow_since_s: float | None = None
    # Since when a ready replica has no request.
    spare_since_s: float | None = None
    # Since when a start finds no room.
    blocked_since_s: float | None = None
    # The last time a replica was ready.
    seen_ready_s: float = -math.inf
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True, slots=True)
class ModelView:
    """All that the plan knows of one model."""

    spec: ModelSpec
    replicas: tuple[Replica, ...] = ()
    demand: Demand = field(default_factory=Demand)
    # The number set by `tokka fleet scale`. It replaces the minimum and the maximum; at 0, no request starts the model.
    fixed: int | None = None
    history: History = field(default_factory=History)

    @property
    def alive(self) -> list[Replica]:
        return [one for one in self.replicas if one.state != "draining"]

    @property
    def floor(self) -> int:
        """The number of replicas that neither idleness nor other models reduce."""
        return self.spec.min_replicas if self.fixed is None else self.fixed


def note_end(history: History, ready_s: float, now_s: float) -> History:
    """Record a worker that ended by itself, or a failed launch. Do not call it for a worker that was drained."""
    return replace(history, backoff=history.backoff.after_end(ready_s, now_s))


def state_of(view: ModelView) -> ModelState:
    """Return the model's state for people."""
    states = {one.state for one in view.replicas}
    if "ready" in states:
        return "ready"
    # Also during the next try and after the last one, until a start succeeds.
    if view.history.backoff.failures:
        return "failed"
    if "starting" in states:
        return "starting"
    if "draining" in states:
        return "draining"
    # A model that waits for room or for its first start.
    return "starting" if view.history.wanted else "asleep"


def rescale(view: ModelView, target_wait_s: float, now_s: float) -> tuple[History, Replica | None]:
    """Return the history with the number of replicas wanted now, and the replica to stop because of idleness."""
    old, alive = view.history, view.alive
    ready = [one for one in alive if one.state == "ready"]
    wanted = len(alive) if old.wanted is None else old.wanted
    is_whole = bool(ready) and len(ready) == len(alive) >= wanted
    slow_since_s = _since(old.slow_since_s, now_s) if is_whole and view.demand.wait_s > target_wait_s else None
    spare_since_s = _spare_since_s(view, ready, now_s)
    is_slow = slow_since_s is not None and now_s - slow_since_s >= _SLOW_S
    is_spare = spare_since_s is not None and now_s - spare_since_s >= view.spec.idle_after_s
    stops = None
    if is_slow:
        wanted += 1
        slow_since_s = None
    elif is_spare and wanted > view.floor:
        stops = idle_replica(view) if len(alive) >= wanted else None
        wanted -= 1
        spare_since_s = None
    # An old revision that serves does not excuse the new one.
    is_steady = is_whole and all(one.ready_s >= STEADY_S and one.revision == view.spec.revision for one in alive)
    history = replace(
        old,
        wanted=_bounded(view, wanted, now_s),
        slow_since_s=slow_since_s,
        spare_since_s=spare_since_s,
        seen_ready_s=now_s if ready else old.seen_ready_s,
        backoff=Backoff() if is_steady and now_s >= old.backoff.not_before_s else old.backoff,
    )
    return history, stops


def idle_replica(view: ModelView) -> Replica | None:
    """Return the replica without requests that goes first: of an old revision, or the youngest."""
    return min((one for one in view.alive if not one.leases), key=lambda one: worth(view, one), default=None)


def worth(view: ModelView, one: Replica) -> tuple[bool, int, float]:
    """Return the order in which replicas go, the first one first."""
    return one.revision == view.spec.revision, one.leases, one.ready_s


def _spare_since_s(view: ModelView, ready: list[Replica], now_s: float) -> float | None:
    demand = view.demand
    if demand.waiting or demand.is_expected or all(one.leases for one in ready):
        return None
    since_s = _since(view.history.spare_since_s, now_s)
    # Short requests of the only replica come and go between two calls.
    return max(since_s, now_s - demand.idle_s) if len(ready) == 1 else since_s


def _bounded(view: ModelView, wanted: int, now_s: float) -> int:
    if view.fixed is not None:
        return view.fixed
    if _is_asked(view, now_s):
        wanted = max(1, wanted)
    elif not view.alive:
        # A sleeping model that ended or failed starts again when a request asks for it.
        wanted = 0
    return max(view.spec.min_replicas, min(view.spec.max_replicas, wanted))


def _is_asked(view: ModelView, now_s: float) -> bool:
    demand = view.demand
    if demand.waiting or demand.asked_s is None:
        return demand.waiting > 0
    # A request from before the model was last ready had its turn.
    return demand.is_expected and now_s - demand.asked_s > view.history.seen_ready_s


def _since(since_s: float | None, now_s: float) -> float:
    return now_s if since_s is None else since_s

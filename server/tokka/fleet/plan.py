"""Decides which workers to start and to drain: a pure function of desired, seen, demand and time.

`scaling.py` decides the number of replicas of each model. This module fits them into the launchers' resources, replaces
old revisions and lets models that do not fit together take turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tokka.fleet.room import Room
from tokka.fleet.scaling import History, ModelView, Replica, rescale, worth
from tokka.fleet.spec import LauncherName, Resources

# Seconds for which a busy model keeps its resources while another model waits for them.
TURN_S = 60.0
# Seconds without a request before a model gives its last replica to another one. A client that sends its next request
# sooner keeps the model loaded, otherwise two such clients would swap models at each request.
_QUIET_S = 2.0

# idle: unused for `idle_after`. room: unused, and another model needs its resources. scale: more than wanted.
Reason = Literal["idle", "room", "scale", "update"]
# The order of starts when not all fit: below the minimum, the first replica of a model, a further one.
_MINIMUM, _FIRST, _FURTHER = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Start:
    model: str


@dataclass(frozen=True, slots=True)
class Drain:
    worker: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Plan:
    actions: tuple[Start | Drain, ...]
    # Workers that get no new requests because another model waits for its turn. They are drained once they have none.
    yielding: frozenset[str]
    # By model, for the next call.
    histories: Mapping[str, History]


def plan(
    views: Sequence[ModelView],
    capacity: Mapping[LauncherName, Resources | None],
    target_wait_s: float,
    now_s: float,
) -> Plan:
    """Return the next actions. Call this again after each change, with the started workers among the replicas.

    `views`: the models in the file's order. `capacity`: all that the workers of a launcher may take; None: no limit.
    """
    models = [_Model(view, target_wait_s, now_s) for view in views]
    yielding: set[str] = set()
    for launcher in dict.fromkeys(view.spec.launcher for view in views):
        room = Room.of(capacity[launcher])
        yielding |= _Launcher([one for one in models if one.view.spec.launcher == launcher], room, now_s).decide()
    return Plan(
        actions=tuple(action for one in models for action in one.actions),
        yielding=frozenset(yielding),
        histories={one.view.spec.name: one.history for one in models},
    )


class _Model:
    """One model while the plan is made."""

    def __init__(self, view: ModelView, target_wait_s: float, now_s: float) -> None:
        self.view = view
        self.actions: list[Start | Drain] = []
        self.history, idle = rescale(view, target_wait_s, now_s)
        self.wanted = self.history.wanted or 0
        self.alive = view.alive
        self.draining = [one for one in view.replicas if one.state == "draining"]
        if idle is not None:
            self.drain(idle, "idle")
        self._drain_surplus()

    @property
    def outdated(self) -> list[Replica]:
        return [one for one in self.alive if one.revision != self.view.spec.revision]

    @property
    def is_starting(self) -> bool:
        return any(one.state == "starting" for one in self.alive)

    @property
    def turn_s(self) -> float:
        """Seconds for which the model has been able to serve."""
        return max((one.ready_s for one in self.alive if one.state == "ready"), default=0.0)

    def drain(self, one: Replica, reason: Reason) -> None:
        self.alive.remove(one)
        self.draining.append(one)
        self.actions.append(Drain(one.id, reason))

    def give_up(self, one: Replica) -> None:
        """Drain a replica for another model, and do not want it back."""
        self.drain(one, "room")
        self.wanted = len(self.alive)
        self.history = replace(self.history, wanted=self.wanted)

    def missing(self, now_s: float) -> Iterator[int]:
        """Yield the rank of each start that is due."""
        backoff, count = self.history.backoff, len(self.alive)
        if now_s < backoff.not_before_s or (backoff.failures and self.is_starting):
            return
        most = 1 if backoff.failures else self.wanted
        for number in range(count, min(self.wanted, count + most)):
            yield _MINIMUM if number < self.view.floor else _FURTHER if number else _FIRST

    def _drain_surplus(self) -> None:
        """Drain what exceeds the wanted number, except for one that replaces an old revision once it is ready."""
        revision = self.view.spec.revision
        starts_new = any(one.state == "starting" and one.revision == revision for one in self.alive)
        is_replacing = starts_new and bool(self.outdated) and self.wanted > 0
        while len(self.alive) > self.wanted + is_replacing:
            reason: Reason = "update" if self.outdated else "scale"
            self.drain(min(self.alive, key=lambda one: worth(self.view, one)), reason)


class _Launcher:
    """The models of one launcher and the room between them."""

    def __init__(self, models: Sequence[_Model], room: Room, now_s: float) -> None:
        self._models, self._now_s = models, now_s
        for one in (one for model in models for one in model.view.replicas):
            room = room.without(one.resources)
        self._room = room
        self._yielding: set[str] = set()

    def decide(self) -> set[str]:
        """Add the actions to the models. Return the workers that yield."""
        due = [
            (rank, since_s if rank else 0.0, place, model)
            for place, model in enumerate(self._models)
            for since_s in [self._blocked_since_s(model)]
            for rank in model.missing(self._now_s)
        ]
        blocked = [model for rank, _, _, model in sorted(due, key=lambda one: one[:3]) if not self._start(model, rank)]
        for model in self._models:
            since_s = self._blocked_since_s(model) if model in blocked else None
            model.history = replace(model.history, blocked_since_s=since_s)
            self._update(model)
        return self._yielding

    def _blocked_since_s(self, model: _Model) -> float:
        since_s = model.history.blocked_since_s
        return self._now_s if since_s is None else since_s

    def _start(self, model: _Model, rank: int) -> bool:
        """Start a replica, or make room for it. Return False if it has to wait."""
        if model.wanted <= len(model.alive):
            # Another model has just got the resources.
            return True
        need = model.view.spec.resources
        if self._room.fits(need):
            model.actions.append(Start(model.view.spec.name))
            self._room = self._room.without(need)
            return True
        if self._make_room(model, rank):
            # Starts of a later turn do not take the resources that become free.
            self._room = self._room.without(need)
        return False

    def _make_room(self, model: _Model, rank: int) -> bool:
        """Take replicas from other models if that lets this one start. Return whether it does."""
        room, need = self._room, model.view.spec.resources
        for one in (one for other in self._models for one in other.draining):
            room = room.plus(one.resources)
        others = [other for other in self._models if other is not model]
        taken: list[tuple[_Model, Replica]] = []
        for candidate in self._candidates(others, model, rank):
            if room.fits(need):
                break
            if candidate not in taken:
                taken.append(candidate)
                room = room.plus(candidate[1].resources)
        if not room.fits(need):
            return False
        for owner, one in taken:
            if one.leases:
                self._yielding.add(one.id)
            else:
                owner.give_up(one)
        return True

    def _candidates(self, others: Sequence[_Model], model: _Model, rank: int) -> Iterator[tuple[_Model, Replica]]:
        """Yield replicas of other models: the unused ones, then those of busy models whose turn is over."""
        quiet_s = TURN_S if rank == _FURTHER else _QUIET_S
        for other in sorted(others, key=lambda one: -one.view.demand.idle_s):
            for one in _unused(other, quiet_s):
                yield other, one
        if rank == _FURTHER or self._now_s - self._blocked_since_s(model) < TURN_S:
            return
        for other in sorted(others, key=lambda one: -one.turn_s):
            if other.turn_s >= TURN_S:
                for one in _takable(other, other.view.floor):
                    yield other, one

    def _update(self, model: _Model) -> None:
        """Replace one replica of an old revision: start the new one first if it fits."""
        backoff, need = model.history.backoff, model.view.spec.resources
        # A further replica that finds no room does not hold the update up for ever.
        is_short = len(model.alive) < model.wanted and self._now_s - self._blocked_since_s(model) < TURN_S
        is_settled = not (is_short or model.is_starting or model.draining or model.actions)
        if not model.outdated or not is_settled or self._now_s < backoff.not_before_s:
            return
        old = min(model.outdated, key=lambda one: worth(model.view, one))
        if self._room.fits(need):
            model.actions.append(Start(model.view.spec.name))
            self._room = self._room.without(need)
        elif not backoff.failures and self._room.plus(old.resources).fits(need):
            # A revision that has just failed to start takes no working replica away.
            model.drain(old, "update")


def _unused(model: _Model, quiet_s: float) -> list[Replica]:
    """Return the replicas that the model does not need now."""
    demand = model.view.demand
    # The clients that asked for a model that has just started have not come back yet.
    if demand.waiting or (demand.is_expected and model.turn_s < TURN_S):
        return []
    keeps = max(model.view.floor, 0 if demand.idle_s >= quiet_s else 1)
    return [one for one in _takable(model, keeps) if not one.leases]


def _takable(model: _Model, keeps: int) -> list[Replica]:
    """Return ready replicas beyond the number that stays: unused ones first, then the youngest."""
    ready = sorted((one for one in model.alive if one.state == "ready"), key=lambda one: (one.leases > 0, one.ready_s))
    return ready[: max(0, len(ready) - keeps)]

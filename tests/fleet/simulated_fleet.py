"""Simulates workers and clients in steps of half a second, under the real plan. Each plan is held to the invariants."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tokka.fleet.plan import Drain, Plan, Start, plan
from tokka.fleet.scaling import Demand, History, ModelView, Replica, note_end
from tokka.fleet.spec import LauncherName, ModelSpec, Resources

State = Literal["starting", "ready", "draining"]
STEP_S = 0.5
TARGET_WAIT_S = 5.0
GPU = Resources(gpus=1)
Capacity = Mapping[LauncherName, Resources | None]


def spec(name: str = "a", least: int = 0, most: int = 1, gpus: int = 1, revision: str = "1") -> ModelSpec:
    return ModelSpec(
        name=name,
        aliases=(),
        model=f"/models/{name}",
        settings={},
        revision=revision,
        min_replicas=least,
        max_replicas=most,
        idle_after_s=60.0,
        resources=Resources(gpus=gpus),
    )


def after(view: ModelView, made: Plan) -> ModelView:
    """Return the view with the actions carried out."""
    drained = {one.worker for one in made.actions if isinstance(one, Drain)}
    starts = made.actions.count(Start(view.spec.name))
    replicas = [replace(one, state="draining") if one.id in drained else one for one in view.replicas]
    count = len(replicas)
    replicas += [
        Replica(f"{view.spec.name}-new{count + number}", "starting", view.spec.revision, view.spec.resources)
        for number in range(starts)
    ]
    return replace(view, replicas=tuple(replicas), history=made.histories[view.spec.name])


def check(views: Sequence[ModelView], capacity: Capacity, made: Plan, now_s: float) -> None:
    """Hold a plan to the rules that have no exception."""
    drains = [one for one in made.actions if isinstance(one, Drain)]
    assert len({one.worker for one in drains}) == len(drains)
    assert not made.yielding & {one.worker for one in drains}
    reasons = {one.worker: one.reason for one in drains}
    for launcher, limit in capacity.items():
        here = [view for view in views if view.spec.launcher == launcher]
        before = [one.resources for view in here for one in view.replicas]
        used = [one.resources for view in here for one in after(view, made).replicas]
        if limit is not None:
            assert sum(one.gpus for one in used) <= max(limit.gpus, sum(one.gpus for one in before))
    for view in views:
        _check_model(view, made, {one.id: reasons[one.id] for one in view.replicas if one.id in reasons}, now_s)
        reasons = {worker: reason for worker, reason in reasons.items() if worker not in {r.id for r in view.replicas}}
    assert not reasons


def _check_model(view: ModelView, made: Plan, reasons: Mapping[str, str], now_s: float) -> None:
    left, starts = after(view, made).alive, made.actions.count(Start(view.spec.name))
    if starts:
        most = view.spec.max_replicas if view.fixed is None else view.fixed
        surge = any(one.revision != view.spec.revision for one in view.alive)
        assert len(left) <= most + surge
        assert now_s >= view.history.backoff.not_before_s
        assert not reasons or set(reasons.values()) <= {"scale"}
    for one in view.replicas:
        if one.id in made.yielding:
            assert one.state == "ready"
            assert one.leases
        if one.id in reasons:
            assert one.state != "draining"
            assert not one.leases or reasons[one.id] in ("update", "scale")
    if {"idle", "room"} & set(reasons.values()):
        assert len(left) >= view.floor


@dataclass(eq=False)
class Client:
    """Sends its next request `think_s` after the last one ended. Without `holds`, it retries after a refusal."""

    model: str
    service_s: float = 1.0
    think_s: float = 0.0
    from_s: float = 0.0
    until_s: float = math.inf
    holds: bool = True
    served: int = 0
    next_s: float = field(init=False)
    is_waiting: bool = False

    def __post_init__(self) -> None:
        self.next_s = self.from_s


@dataclass(eq=False)
class Worker:
    id: str
    model: str
    revision: str
    resources: Resources
    started_s: float
    ready_at_s: float
    is_draining: bool = False
    # End of each running request, and its client.
    running: list[tuple[float, Client]] = field(default_factory=list)


class Fleet:
    """Virtual workers of one launcher, with `slots` requests each at a time."""

    def __init__(self, specs: Sequence[ModelSpec], gpus: int, clients: Sequence[Client] = ()) -> None:
        self.specs = {one.name: one for one in specs}
        self.capacity: Capacity = {"local": Resources(gpus=gpus)}
        self.clients = list(clients)
        self.load_s, self.slots = 20.0, 2
        self.now_s = 0.0
        self.workers: list[Worker] = []
        self.fixed: dict[str, int] = {}
        # Models and revisions whose workers end as soon as they would be ready.
        self.broken: set[tuple[str, str]] = set()
        self.histories = {name: History() for name in self.specs}
        self.starts: Counter[str] = Counter()
        self.actions: list[tuple[float, Start | Drain]] = []
        self.yielding: frozenset[str] = frozenset()
        self.longest_wait_s: Counter[str] = Counter()
        self._queues: dict[str, deque[tuple[float, Client]]] = {name: deque() for name in self.specs}
        self._ended_s = dict.fromkeys(self.specs, -math.inf)
        self._asked_s: dict[str, float | None] = dict.fromkeys(self.specs)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            self._step()

    def ready(self, model: str) -> list[Worker]:
        return [
            one for one in self.workers
            if one.model == model and one.ready_at_s <= self.now_s and not one.is_draining
        ]  # fmt: skip

    def count(self, model: str) -> int:
        return sum(one.model == model and not one.is_draining for one in self.workers)

    def _step(self) -> None:
        self.now_s += STEP_S
        self._end()
        for client in self.clients:
            if not client.is_waiting and client.next_s <= self.now_s < client.until_s:
                self._ask(client)
        for name in self.specs:
            self._serve(name)
        views = [self._view(one) for one in self.specs.values()]
        made = plan(views, self.capacity, TARGET_WAIT_S, self.now_s)
        check(views, self.capacity, made, self.now_s)
        self.histories, self.yielding = dict(made.histories), made.yielding
        for action in made.actions:
            self._carry_out(action)

    def _carry_out(self, action: Start | Drain) -> None:
        self.actions.append((self.now_s, action))
        if isinstance(action, Drain):
            next(one for one in self.workers if one.id == action.worker).is_draining = True
            return
        self.starts[action.model] += 1
        made = self.specs[action.model]
        self.workers.append(
            Worker(
                f"{made.name}{self.starts[made.name]}", made.name, made.revision, made.resources,
                self.now_s, self.now_s + self.load_s,
            )
        )  # fmt: skip

    def _end(self) -> None:
        for worker in list(self.workers):
            for end_s, client in list(worker.running):
                if end_s <= self.now_s:
                    worker.running.remove((end_s, client))
                    client.served += 1
                    client.is_waiting, client.next_s = False, self.now_s + client.think_s
                    self._ended_s[worker.model] = self.now_s
            if worker.is_draining and not worker.running:
                self.workers.remove(worker)
            elif (worker.model, worker.revision) in self.broken and worker.ready_at_s <= self.now_s:
                self.workers.remove(worker)
                self.histories[worker.model] = note_end(self.histories[worker.model], 0.0, self.now_s)

    def _ask(self, client: Client) -> None:
        takes = [one for one in self.ready(client.model) if one.id not in self.yielding]
        if not takes:
            self._asked_s[client.model] = self.now_s
            if not client.holds:
                client.next_s = self.now_s + 5
                return
        client.is_waiting = True
        self._queues[client.model].append((self.now_s, client))

    def _serve(self, model: str) -> None:
        queue = self._queues[model]
        for worker in self.ready(model):
            while queue and worker.id not in self.yielding and len(worker.running) < self.slots:
                since_s, client = queue.popleft()
                self._asked_s[model] = None
                self.longest_wait_s[model] = max(self.longest_wait_s[model], math.ceil(self.now_s - since_s))
                worker.running.append((self.now_s + client.service_s, client))

    def _view(self, made: ModelSpec) -> ModelView:
        replicas = tuple(self._replica(one) for one in self.workers if one.model == made.name)
        waiting, ready = len(self._queues[made.name]), max(1, len(self.ready(made.name)))
        is_open = waiting or any(one.leases for one in replicas)
        asked_s = self._asked_s[made.name]
        service_s = max((one.service_s for one in self.clients if one.model == made.name), default=0.0)
        demand = Demand(
            waiting=waiting,
            wait_s=waiting * service_s / (ready * self.slots),
            idle_s=0.0 if is_open else self.now_s - self._ended_s[made.name],
            asked_s=None if asked_s is None else self.now_s - asked_s,
        )
        return ModelView(made, replicas, demand, self.fixed.get(made.name), self.histories[made.name])

    def _replica(self, one: Worker) -> Replica:
        is_ready = one.ready_at_s <= self.now_s
        state: State = "draining" if one.is_draining else "ready" if is_ready else "starting"
        ready_s = max(0.0, self.now_s - one.ready_at_s)
        return Replica(one.id, state, one.revision, one.resources, len(one.running), ready_s)

"""Composition of the served models: those of this process, or those of a fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tokka.accounts.keys import KeyRing
from tokka.admission.controller import AdmissionController
from tokka.admission.policy import AdmissionPolicy, Bounds
from tokka.admission.quarantine import Quarantine, strikes_before
from tokka.admission.targets import Targets, interactive
from tokka.dispatch.catalogue import Catalogue, ServedModel
from tokka.engine.base import Engine
from tokka.engine.replicas import Replicas
from tokka.engine.supervision.restart import RestartPolicy
from tokka.engine.supervision.supervisor import Supervisor
from tokka.fleet.model import FleetModel
from tokka.fleet.spec import ModelSpec
from tokka.observability.metrics import Metrics
from tokka.settings import Settings
from tokka.tasks import Task


def local_models(
    settings: Settings,
    create_engine: Callable[[], Engine],
    create_embedder: Callable[[], Engine] | None,
    metrics: Metrics,
    ring: KeyRing,
) -> Catalogue:
    """Return the model of this process, and the embedding model beside it if there is one."""
    # The states of the main model's engine are those of the server.
    models = [_local_model(settings, create_engine, metrics, ring, on_state=metrics.set_engine_state)]
    if create_embedder is not None:
        names, tasks = settings.embedding_names(), frozenset[Task]({"embed"})
        models.append(_local_model(settings, create_embedder, metrics, ring, names=names, tasks=tasks))
    return Catalogue(models)


def fleet_models(
    settings: Settings, specs: Iterable[ModelSpec], metrics: Metrics, ring: KeyRing, on_change: Callable[[str], None]
) -> tuple[Catalogue, dict[str, FleetModel]]:
    """Return the models of a fleet, all asleep. `on_change`: called with a model's name after each change of it."""
    models: list[ServedModel] = []
    fleet: dict[str, FleetModel] = {}
    for spec in specs:
        admission = _admission(settings, _policy(settings), metrics)
        fleet[spec.name] = replicas = FleetModel(spec, _resizing(spec.name, admission, fleet, on_change))
        names = (spec.name, *spec.aliases)
        models.append(ServedModel(names, replicas, admission, _quarantine(settings, ring)))
        metrics.expect_starts(spec.name)
        _watch(metrics, spec.name, replicas)
    return Catalogue(models, probes_all=True), fleet


def _resizing(
    name: str, admission: AdmissionController, fleet: dict[str, FleetModel], on_change: Callable[[str], None]
) -> Callable[[], None]:
    """Return a callback for changes of a model: it tells the admission a new capacity."""
    applied = None

    def changed() -> None:
        nonlocal applied
        if (info := fleet[name].info) is not None and info != applied:
            applied = info
            admission.resize(info)
        on_change(name)

    return changed


def _local_model(
    settings: Settings,
    create_engine: Callable[[], Engine],
    metrics: Metrics,
    ring: KeyRing,
    *,
    on_state: Callable[[str], None] = lambda _: None,
    names: tuple[str, ...] = (),
    tasks: frozenset[Task] | None = None,
) -> ServedModel:
    """Return a served model with a supervisor, an admission and a quarantine of its own.

    `names`, `tasks`: of a model beside the main one.
    """
    names = names or settings.names()
    # Targets for the times of tokens do not apply to vectors.
    policy = (
        _policy(settings) if tasks is None else AdmissionPolicy(_bounds(settings), Targets(), settings.tenant_weights)
    )
    admission = _admission(settings, policy, metrics)

    def on_engine_state(state: str) -> None:
        if not admission.is_draining:
            on_state(state)
        if supervisor.info:
            admission.resize(supervisor.info)

    supervisor = Supervisor(
        create_engine,
        on_state=on_engine_state,
        on_restart=metrics.count_restart,
        policy=RestartPolicy(settings.max_quick_deaths),
        stall_timeout_s=settings.stall_timeout,
        starts_on_demand=tasks is not None and settings.loads_embedding_model_late,
        name=None if tasks is None else names[0],
    )
    _watch(metrics, names[0], supervisor)
    return ServedModel(names, supervisor, admission, _quarantine(settings, ring), tasks)


def _watch(metrics: Metrics, name: str, replicas: Replicas) -> None:
    metrics.watch_model(
        name,
        lambda: replicas.progress().state == "ready",
        lambda: [worker.progress.state for worker in replicas.workers()],
    )


def _admission(settings: Settings, policy: AdmissionPolicy, metrics: Metrics) -> AdmissionController:
    return AdmissionController(policy, queue_timeout_s=settings.queue_timeout, on_error=metrics.observe_prediction)


def _quarantine(settings: Settings, ring: KeyRing) -> Quarantine:
    return Quarantine(
        settings.quarantine_time,
        strikes=strikes_before(settings.max_quick_deaths),
        has_others=lambda: ring.has_several_tenants,
    )


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        settings.max_waiting,
        settings.max_waiting_tokens,
        settings.max_waiting_per_tenant,
        settings.max_waiting_tokens_per_tenant,
    )


def _policy(settings: Settings) -> AdmissionPolicy:
    bounds = _bounds(settings)
    given = Targets(settings.slo_ttft, settings.slo_tpot)
    if settings.slo == "interactive":
        return AdmissionPolicy(bounds, given, settings.tenant_weights, targets_of=interactive)
    return AdmissionPolicy(bounds, given, settings.tenant_weights)

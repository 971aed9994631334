"""The served models. A request finds its model, and with it the engine and its admission, by a served name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import structlog

from tokka.admission.controller import AdmissionController
from tokka.admission.prompt_estimate import PromptEstimate
from tokka.admission.quarantine import Quarantine
from tokka.core import Key
from tokka.engine.replicas import SERVES, Progress, Replicas
from tokka.engine_facts import EngineStats, ModelState
from tokka.errors import ConfigurationError, ModelNotFound, StartupError, UnsupportedTask
from tokka.tasks import Task

log = structlog.get_logger("tokka.engine")

# Seconds until the next start of a model beside the main one, after its engine has died too often.
_GIVEN_UP_S = 60.0
_VERBS: dict[Task, str] = {"generate": "generate text", "embed": "embed"}


@dataclass(eq=False, slots=True)
class ServedModel:
    """A model with its names, its engines, and all that admission knows about them."""

    # The first one is the main name.
    names: tuple[str, ...]
    replicas: Replicas
    admission: AdmissionController
    quarantine: Quarantine
    # Tasks of the model as long as its engine has not described it. None: not known.
    expected_tasks: frozenset[Task] | None = None
    estimate: PromptEstimate = field(default_factory=PromptEstimate)

    @property
    def tasks(self) -> frozenset[Task] | None:
        """What the model can do. None: not known before its engine is ready for the first time."""
        info = self.replicas.info
        return self.expected_tasks if info is None else info.tasks

    @property
    def state(self) -> ModelState:
        """The model's state for users."""
        if self.admission.is_draining:
            return "draining"
        state = self.replicas.progress().state
        if state == "stopped":
            # An engine of this process stops only before its start and after the end of the server.
            return "starting" if self.replicas.is_one and not self.replicas.starts_on_demand else "asleep"
        return state


class Catalogue:
    """All models of this server, the main one first."""

    def __init__(self, models: Sequence[ServedModel], *, probes_all: bool = False) -> None:
        """Raise ConfigurationError if two models have the same name.

        `probes_all`: the probes say ready if one model would serve. Otherwise, they answer for the main model.
        """
        self.models = tuple(models)
        self._probed = self.models if probes_all else self.models[:1]
        self._by_name: dict[str, ServedModel] = {}
        for model in models:
            for name in model.names:
                if name in self._by_name and self._by_name[name] is not model:
                    raise ConfigurationError(f"two models are served as {name}; give one another --served-model-name")
                self._by_name[name] = model

    @property
    def main(self) -> ServedModel:
        """The model that a request without a name gets, and whose targets the metrics show."""
        return self.models[0]

    def names(self, key: Key) -> tuple[str, ...]:
        """Return the served names that this key may use."""
        return tuple(self._by_name) if key.models is None else tuple(filter(key.models.__contains__, self._by_name))

    def find(self, name: str | None, key: Key) -> ServedModel:
        """Return the model with this name. None stands for the first model that the key may use.

        Raises ModelNotFound, also for a name that the key may not use.
        """
        if name is None:
            name = next(iter(self.names(key)), "")
        model = self._by_name.get(name)
        if model is None or (key.models is not None and name not in key.models):
            raise ModelNotFound(
                f"The model `{name[:128]}` does not exist. Served to you: {', '.join(self.names(key)) or 'none'}.",
                param="model",
            )
        return model

    def check_task(self, model: ServedModel, task: Task, name: str, key: Key) -> None:
        """Raise UnsupportedTask if the model is known not to do this."""
        tasks = model.tasks
        if tasks is None or task in tasks:
            return
        able = [one for one in self.names(key) if task in (self._by_name[one].tasks or ())]
        remedy = f"Send the model {' or '.join(f'`{one}`' for one in able)}" if able else "No served model can do this"
        raise UnsupportedTask(
            f"The model `{name[:128]}` cannot {_VERBS[task]}; it can {_listed(tasks)}. {remedy}.", param="model"
        )

    # -- all models together

    def progress(self) -> Progress:
        """Return how far the server is. Of several models, the detail names the ones that are not ready."""
        every = {model.names[0]: model.replicas.progress() for model in self._probed}
        # Models that start on demand do not decide, if there are others.
        lasting = {name: one for name, one in every.items() if self._lasts(name) and one.state != "stopped"}
        best = min((lasting or every).values(), key=lambda one: (one.state != "ready", one.state != "asleep"))
        if len(every) == 1:
            return best
        unready = (f"{name} {one.state}" for name, one in every.items() if one.state != "ready")
        return replace(best, detail=", ".join(unready))

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served now. If all models start on demand, also while one starts for a request."""
        state = self.progress().state
        return state in SERVES or (state != "failed" and not any(self._lasts(one.names[0]) for one in self._probed))

    def _lasts(self, name: str) -> bool:
        return not self._by_name[name].replicas.starts_on_demand

    async def changes(self, every_s: float | None = None) -> AsyncGenerator[Progress]:
        """Yield the progress now, at each change of a model, and after `every_s` seconds without one. Never ends."""
        changed = asyncio.Event()

        async def watch(replicas: Replicas) -> None:
            async for _ in replicas.changes():
                changed.set()

        watching = [asyncio.create_task(watch(model.replicas)) for model in self._probed]
        try:
            # Each begins with the current state, which is no change.
            await asyncio.sleep(0)
            while True:
                changed.clear()
                yield self.progress()
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await changed.wait()
        finally:
            for task in watching:
                task.cancel()

    @property
    def was_ready(self) -> bool:
        """Whether the server has been able to serve since its start."""
        return self.progress().state in SERVES or any(model.replicas.was_ready for model in self._probed)

    @property
    def is_draining(self) -> bool:
        return self.main.admission.is_draining

    @property
    def open_requests(self) -> int:
        """Number of running and queued requests."""
        return sum(model.admission.open_requests for model in self.models)

    @property
    def waiting_choices(self) -> int:
        return sum(model.admission.waiting_choices for model in self.models)

    def stats(self) -> EngineStats:
        """Return the engines' statistics, summed for the metrics."""
        every = [model.replicas.stats() for model in self.models]
        return EngineStats(
            running=sum(one.running for one in every),
            waiting=sum(one.waiting for one in every),
            preemptions=sum(one.preemptions for one in every),
        )

    def start_draining(self) -> None:
        """Refuse new requests from now on. Running and queued requests may finish."""
        for model in self.models:
            model.admission.start_draining()

    def refuse_waiting(self) -> None:
        """Refuse all queued requests, because the drain's time is over."""
        for model in self.models:
            model.admission.refuse_waiting()

    async def idle(self) -> None:
        """Wait until no request is running or queued."""
        await asyncio.gather(*(model.admission.idle() for model in self.models))

    async def close(self) -> None:
        """Stop every engine."""
        await asyncio.gather(*(model.replicas.close() for model in self.models))

    async def admit(self) -> None:
        """Run the admission of every model, until cancelled. Raises the error of one that fails."""
        await _run_all(model.admission.run(model.replicas.stats) for model in self.models)

    async def run_beside(self) -> None:
        """Keep the engines of the models beside the main one running, until cancelled.

        Raises StartupError if one cannot be started that must start with the server.
        """
        await _run_all([*map(_keep_running, self.models[1:]), asyncio.Event().wait()])


async def _run_all(works: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run all at once, until cancelled. Raises the first error, not in a group: callers know its type."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_running(model: ServedModel) -> NoReturn:
    """Run a model's engine. A model that once was ready, or starts on demand, never ends the server."""
    replicas = model.replicas
    while True:
        try:
            await replicas.run()
        except StartupError as error:
            if not (replicas.was_ready or replicas.starts_on_demand):
                raise
            log.error("model_given_up", model=model.names[0], reason=str(error), retry_in_s=_GIVEN_UP_S)
        await asyncio.sleep(_GIVEN_UP_S)


def _listed(tasks: frozenset[Task]) -> str:
    return " and ".join(_VERBS[task] for task in sorted(tasks))

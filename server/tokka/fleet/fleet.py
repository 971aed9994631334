"""The fleet of a gateway: its models, the address where workers join, and the launchers that start them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from tokka.errors import ConfigurationError, InvalidRequest, ModelNotFound, StateUnavailable
from tokka.fleet.command import worker_command, worker_environment
from tokka.fleet.controller import Controller, Load, Managed, OnStart, Worker, within
from tokka.fleet.file import FleetFile, read_fleet_file
from tokka.fleet.launchers.base import Launcher
from tokka.fleet.launchers.local import LocalLauncher
from tokka.fleet.launchers.machine import Machine, find_machine
from tokka.fleet.listener import Listener
from tokka.fleet.model import FleetModel
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.scales import read_scales, write_scales
from tokka.fleet.spec import LauncherName, ModelSpec, Resources
from tokka.fleet.token_file import TOKEN_NAME, JoinToken, ensure_token_file, read_token_file, server_context
from tokka.protocol.worker.handshake import Hello
from tokka.settings import environment_with

log = structlog.get_logger("tokka.fleet")

_WORKERS = "workers"


class Fleet:
    """Opens the gateway to workers, and keeps as many of them as the models' requests need."""

    def __init__(
        self,
        file: FleetFile,
        state_dir: Path,
        models: Mapping[str, FleetModel],
        load_of: Callable[[str], Load],
        on_start: OnStart,
        *,
        drain_timeout_s: float,
        target_wait_s: float,
    ) -> None:
        """`load_of`: returns the load of a model by its name. `on_start`: see `Controller`."""
        self.file = file
        self._models = models
        self._drain_timeout_s = drain_timeout_s
        self._token, self._token_file = _token_of(file, state_dir)
        context = server_context(self._token_file.parent, self._token)
        self._listener = Listener(self._token.token, context, self._refusal, self._on_worker)
        self._machine = machine = _machine_of(file.launchers.get("local", {}))
        _check_room(file, machine)
        self._launchers: dict[LauncherName, Launcher] = {
            "local": LocalLauncher(state_dir / _WORKERS, self._command, machine)
        }
        self._state_dir = state_dir
        scales = read_scales(state_dir)
        managed = {
            name: Managed(model, partial(load_of, name), within(scales.get(name), model.spec))
            for name, model in models.items()
        }
        self.controller = Controller(
            managed, self._launchers, on_start, drain_timeout_s=drain_timeout_s, target_wait_s=target_wait_s
        )

    def open(self) -> None:
        """Let workers join. Raises ConfigurationError if the address cannot be used."""
        join = self.file.join
        try:
            family = socket.AF_INET6 if ":" in join.host else socket.AF_INET
            listener = socket.create_server((join.host, join.port), family=family)
        except OSError as error:
            raise ConfigurationError(
                f"{self.file.path}: cannot listen on join: {join}: {error.strerror}; give another address, or stop"
                " what uses it"
            ) from None
        self._listener.open([listener])
        log.info("workers_may_join", address=str(join), token_file=str(self._token_file))

    async def run(self) -> None:
        """Keep the fleet, until cancelled."""
        await self.controller.run()

    async def stop(self) -> None:
        """Drain the workers of this machine, and wait until they have ended. Call it after `run`."""
        await self.controller.stop()

    async def close(self) -> None:
        """Close the connections. Workers that still run look for a gateway for a while."""
        await self._listener.close()
        await asyncio.gather(*(launcher.close() for launcher in self._launchers.values()))

    # -- the operator

    def status(self) -> list[dict[str, Any]]:
        """Return every model with its state and its workers, in the file's order."""
        return [self._model_status(name) for name in self._models]

    async def scale(self, name: str, number: int | None) -> None:
        """Fix the replicas of a model, also for later gateways; None lets its requests decide.

        Raises ModelNotFound, InvalidRequest, StateUnavailable.
        """
        self._check(name)
        self.controller.scale(name, number)
        try:
            await asyncio.to_thread(write_scales, self._state_dir, self.controller.fixed())
        except OSError as error:
            log.error("scales_not_saved", folder=str(self._state_dir), reason=error.strerror)
            raise StateUnavailable("The number holds until the gateway ends: it could not be saved.") from None

    async def drain(self, name: str, worker: str | None) -> None:
        """Replace one replica of a model, or all. Raises ModelNotFound, InvalidRequest."""
        self._check(name)
        await self.controller.drain(name, worker)

    async def update(self) -> list[str]:
        """Read the file again. Return the names of the models whose replicas are replaced. Raises InvalidRequest."""
        try:
            file = await asyncio.to_thread(read_fleet_file, self.file.path)
            _check_room(file, self._machine)
        except ConfigurationError as error:
            raise InvalidRequest(f"The fleet file was not taken: {error}") from None
        specs = {spec.name: spec for spec in file.models}
        if fixed := _differences(self.file, file):
            raise InvalidRequest(
                f"The fleet file was not taken: {', '.join(fixed)} changed, which needs a new start of the gateway."
            )
        before = {name: model.spec.revision for name, model in self._models.items()}
        self.controller.update(specs)
        self.file = file
        return [name for name, spec in specs.items() if spec.revision != before[name]]

    # -- parts

    def _model_status(self, name: str) -> dict[str, Any]:
        managed = self.controller.models[name]
        progress = managed.replicas.progress()
        workers = [worker for worker in self.controller.workers.values() if worker.model == name]
        return {
            "name": name,
            "state": "asleep" if progress.state == "stopped" else progress.state,
            "fixed": managed.fixed,
            "failure": managed.failure or None,
            "replicas": [self._worker_status(worker, managed.replicas) for worker in workers],
        }

    def _worker_status(self, worker: Worker, model: FleetModel) -> dict[str, Any]:
        member = model.members.get(worker.id)
        state = "starting" if member is None else member.worker.state
        replica = member.replica if member is not None else None
        return {
            "id": worker.id,
            "state": "draining" if worker.drains_s is not None else state,
            "phase": member.worker.phase if member is not None and state == "starting" else None,
            "node": worker.node,
            "pid": worker.pid,
            "launcher": worker.launcher,
            "revision": worker.revision,
            "running": replica.admitted if replica is not None else 0,
        }

    def _check(self, name: str) -> None:
        if name not in self._models:
            raise ModelNotFound(f"The fleet has no model `{name[:128]}`.", param="model")

    def _refusal(self, hello: Hello) -> str | None:
        """Return why a worker must not join."""
        if hello.model not in self._models:
            return f"this gateway has no model {hello.model}; its models are {', '.join(self._models)}"
        known = self.controller.workers.get(hello.worker)
        if known is not None and known.model != hello.model:
            return f"the id {hello.worker} belongs to a worker of {known.model}"
        return None

    def _on_worker(self, worker: RemoteWorker) -> None:
        self._models[worker.hello.model].take(worker)
        if worker.state == "draining":
            self.controller.note_drain(worker.hello.worker)

    def _command(self, spec: ModelSpec, worker: str) -> tuple[list[str], dict[str, str]]:
        return worker_command(spec, self.file.join, self._token_file, worker), worker_environment(
            spec, self._drain_timeout_s
        )


def _machine_of(block: Mapping[str, Any]) -> Machine:
    """Return the resources for workers of this machine: the numbers of the file, and otherwise all that is found."""
    gpus, memory_bytes = block.get("gpus"), block.get("memory")
    machine = find_machine(environment_with({}), None if gpus is None else Resources(gpus, memory_bytes))
    return machine if memory_bytes is None else replace(machine, memory_bytes=memory_bytes)


def _check_room(file: FleetFile, machine: Machine) -> None:
    """Raise ConfigurationError if a replica takes more than this machine has."""
    faults = []
    for spec in file.models:
        needs, at = spec.resources, f"{file.path}:{spec.line}: models.{spec.name}.resources"
        if spec.launcher != "local":
            continue
        if needs.gpus > len(machine.devices):
            faults.append(f"{at}.gpus: a replica takes {needs.gpus}, and this machine has {len(machine.devices)}")
        if (needs.memory_bytes or 0) > machine.memory_bytes:
            has = f"{machine.memory_bytes / 2**30:.4g}GiB"
            faults.append(f"{at}.memory: a replica takes more than the {has} of this machine")
    if faults:
        raise ConfigurationError("\n".join(faults))


def _token_of(file: FleetFile, state_dir: Path) -> tuple[JoinToken, Path]:
    """Return the token and its file. Raises StartupError."""
    tls = not file.join.on_loopback
    if file.join_token_file is None:
        return ensure_token_file(state_dir, tls=tls), state_dir / TOKEN_NAME
    token = read_token_file(file.join_token_file)
    if tls and token.certificate is None:
        raise ConfigurationError(
            f"{file.path}: join: {file.join} is not on loopback, and {file.join_token_file} holds no certificate;"
            " leave join_token_file out to get one with a certificate"
        )
    return token, file.join_token_file


def _differences(old: FleetFile, new: FleetFile) -> list[str]:
    """Return the parts of the file that a running gateway cannot change."""
    fixed = [
        key for key in ("join", "join_token_file", "hold_s", "launchers") if getattr(old, key) != getattr(new, key)
    ]
    names = {spec.name: (spec.aliases, spec.launcher) for spec in old.models}
    now = {spec.name: (spec.aliases, spec.launcher) for spec in new.models}
    changed = [name for name in {**names, **now} if names.get(name) != now.get(name)]
    return fixed + [f"models.{name}" for name in changed]

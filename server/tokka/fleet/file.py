"""The fleet file: the models of a gateway, where workers join it, and what the launchers have to give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from tokka.errors import ConfigurationError
from tokka.fleet.address import Address, address_of
from tokka.fleet.document import read_document
from tokka.fleet.fields import MAX_TEXT, Faults, Field, is_printable, shown
from tokka.fleet.spec import LauncherName, ModelSpec, Resources
from tokka.settings import WORKER_SETTINGS, checked_settings, environment_text, expanded

_OPTION = "--fleet"
_JOIN = Address("127.0.0.1", 7400)
_HOLD_S = 0.0
_MAX_HOLD_S = 3600.0
_IDLE_AFTER_S = 300.0
_MAX_IDLE_AFTER_S = 30 * 24 * 3600.0
_MAX_REPLICAS = 1024
_MAX_GPUS = 1024
# An engine's process takes more than this before it has loaded a model.
_LEAST_MEMORY = "64MiB"
# Maximum characters of a model's name, as in requests.
_MAX_NAME = 512
_NAMES: tuple[LauncherName, ...] = get_args(LauncherName)
_KEYS = ("join", "join_token_file", "hold", "models", *_NAMES)
_AMOUNTS = ("gpus", "memory")
_MODEL_KEYS = ("model", "aliases", "launcher", "replicas", "idle_after", "resources", "settings")
# Settings that have a place of their own in the file.
_ELSEWHERE = {
    "model": "write it as `model:` of the entry",
    "served_model_name": "the entry's key is the name; write further ones as `aliases:` of the entry",
} | dict.fromkeys(
    (name for name in WORKER_SETTINGS if name.startswith("embedding_")),
    "give the embedding model an entry of its own",
)


@dataclass(frozen=True, slots=True)
class FleetFile:
    """A valid fleet file."""

    path: Path
    # Where workers dial in.
    join: Address
    # None: the token file of the state folder.
    join_token_file: Path | None
    # Seconds that a stream waits for a sleeping model if its request does not say.
    hold_s: float
    models: tuple[ModelSpec, ...]
    # The launchers' own settings. `local`: `gpus` and `memory` in bytes, if given.
    launchers: Mapping[LauncherName, Mapping[str, Any]]


def read_fleet_file(path: Path) -> FleetFile:
    """Read and check the file. Blocks for up to two seconds on a large one.

    Raises StartupError. A ConfigurationError has a line for each fault: FILE:LINE, the key, the remedy.
    """
    root = Field("", 1, read_document(path, _OPTION), Faults(path))
    keys = root.fields(_KEYS)
    launchers = {name: LAUNCHERS[name](keys[name]) for name in _NAMES if name in keys and _is_built(keys[name], name)}
    models = _models(keys.get("models"), launchers.get("local", {}))
    if not models and root.faults.is_empty:
        root.fault("models: it must describe at least one model")
    file = FleetFile(
        path=path,
        join=_join(keys),
        join_token_file=_path(keys.get("join_token_file")),
        hold_s=_or(keys.get("hold"), lambda one: one.seconds(_MAX_HOLD_S), _HOLD_S),
        models=models,
        launchers=launchers,
    )
    root.faults.check()
    return file


def _or(field: Field | None, read: Callable[[Field], Any], default: Any) -> Any:
    """Return what a field holds, or the default if it is missing or wrong."""
    value = read(field) if field is not None else None
    return default if value is None else value


def _join(keys: Mapping[str, Field]) -> Address:
    if (field := keys.get("join")) is None or (text := field.text()) is None:
        return _JOIN
    try:
        return address_of(text)
    except ConfigurationError:
        field.fault('it must be HOST:PORT, for example 127.0.0.1:7400 or "[::1]:7400"')
        return _JOIN


def _path(field: Field | None) -> Path | None:
    if field is None or (text := field.text()) is None:
        return None
    try:
        return expanded(Path(text))
    except ValueError as error:
        field.fault(str(error))
        return None


# -- launchers


def _is_built(field: Field, name: str) -> bool:
    if name in LAUNCHERS:
        return True
    field.fault(f"this version has no launcher {name}; available: {', '.join(LAUNCHERS)}")
    return False


def _amounts(keys: Mapping[str, Field]) -> dict[str, int]:
    """Return `gpus` and `memory`, in bytes, if given."""
    read = {
        "gpus": _or(keys.get("gpus"), lambda one: one.whole(0, _MAX_GPUS), None),
        "memory": _or(keys.get("memory"), lambda one: one.size(_LEAST_MEMORY), None),
    }
    return {name: value for name, value in read.items() if value is not None}


def _local(block: Field) -> dict[str, Any]:
    return _amounts(block.fields(_AMOUNTS))


# The launchers that exist, with the reader of their block in the file.
LAUNCHERS: Mapping[LauncherName, Callable[[Field], dict[str, Any]]] = {"local": _local}


# -- models


def _models(field: Field | None, local: Mapping[str, int]) -> tuple[ModelSpec, ...]:
    names: dict[str, int] = {}
    budget = _Budget(local)
    entries = field.fields().items() if field is not None else ()
    return tuple(_model(name, entry, names, budget) for name, entry in entries)


def _model(name: str, entry: Field, names: dict[str, int], budget: _Budget) -> ModelSpec:
    _claim(entry, name, names)
    keys = entry.fields(_MODEL_KEYS)
    launcher = cast(LauncherName, _or(keys.get("launcher"), _launcher, "local"))
    least, most = _replicas(keys.get("replicas"))
    resources = _resources(keys.get("resources"), least, budget if launcher == "local" else _Budget({}))
    model = _or(keys.get("model"), Field.text, name)
    settings = _settings(keys["settings"]) if "settings" in keys else {}
    return ModelSpec(
        name=name,
        aliases=_aliases(keys.get("aliases"), names),
        model=model,
        settings=settings,
        revision=_revision(model, settings, launcher, resources.gpus, resources.memory_bytes),
        launcher=launcher,
        min_replicas=least,
        max_replicas=most,
        idle_after_s=_or(keys.get("idle_after"), lambda one: one.seconds(_MAX_IDLE_AFTER_S), _IDLE_AFTER_S),
        resources=resources,
        line=entry.line,
    )


def _claim(field: Field, name: str, names: dict[str, int]) -> None:
    """Check a name, and that no model has it already."""
    if not 0 < len(name) <= _MAX_NAME or not is_printable(name):
        field.fault(f"a model's name must have 1 to {_MAX_NAME} characters, all of them printable")
    elif name in names:
        field.fault(f"line {names[name]} gives the name {shown(name)}, too; every name must be different")
    else:
        names[name] = field.line


def _aliases(field: Field | None, names: dict[str, int]) -> tuple[str, ...]:
    found = []
    for item in field.items() if field is not None else ():
        if (alias := item.text()) is not None:
            _claim(item, alias, names)
            found.append(alias)
    return tuple(found)


def _launcher(field: Field) -> str | None:
    name = field.choice(_NAMES)
    return name if name is not None and _is_built(field, name) else None


def _replicas(field: Field | None) -> tuple[int, int]:
    keys = field.fields(("min", "max")) if field is not None else {}
    least = _or(keys.get("min"), lambda one: one.whole(0, _MAX_REPLICAS), 0)
    most = _or(keys.get("max"), lambda one: one.whole(1, _MAX_REPLICAS), max(1, least))
    if least > most:
        keys["max"].fault(f"{most} is less than min, which is {least}; raise max or lower min")
    return least, most


class _Budget:
    """The GPUs and bytes of memory that this machine gives, and the replicas that always run take."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._taken = {"gpus": 0, "memory": 0}

    def take(self, field: Field, name: str, amount: int, replicas: int) -> None:
        """Count a model. It is a fault if a replica, or all that always run up to this one, take more than there is."""
        self._taken[name] += amount * replicas
        if (limit := self._limits.get(name)) is None:
            return
        remedy = f"`local` has {_amount(name, limit)}; lower this, or raise local.{name} if the machine has more"
        if amount > limit:
            field.fault(f"a replica takes {_amount(name, amount)}, but {remedy}")
        elif replicas and self._taken[name] > limit:
            taken = _amount(name, self._taken[name])
            field.fault(f"with the models above, the replicas that always run take {taken}, but {remedy}")


def _amount(name: str, amount: int) -> str:
    return f"{amount} GPUs" if name == "gpus" else f"{amount / 2**30:.4g}GiB"


def _resources(field: Field | None, replicas: int, budget: _Budget) -> Resources:
    keys = field.fields(_AMOUNTS) if field is not None else {}
    amounts = _amounts(keys)
    for name, amount in amounts.items():
        budget.take(keys[name], name, amount, replicas)
    return Resources(amounts.get("gpus", 0), amounts.get("memory"))


def _settings(field: Field) -> dict[str, Any]:
    keys = field.fields(WORKER_SETTINGS)
    for name in keys.keys() & _ELSEWHERE.keys():
        keys[name].fault(f"not here; {_ELSEWHERE[name]}")
    values = {name: one.plain() for name, one in keys.items() if name not in _ELSEWHERE}
    settings, problems = checked_settings(values)
    for name, problem in problems.items():
        keys[name].fault(problem)
    for name, value in settings.items():
        _check_variable(keys[name], name, value)
    return settings


def _check_variable(field: Field, name: str, value: Any) -> None:
    """Check that a worker reads this value from its environment."""
    text = environment_text(value)
    if len(text.encode()) > MAX_TEXT:
        field.fault(f"it has more than {MAX_TEXT} bytes")
    elif isinstance(value, list) and checked_settings({name: text})[0] != {name: value}:
        field.fault("a comma with NAME= behind it begins another item; leave the comma out")


def _revision(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

"""The command and the environment of a `tokka worker` for a model of the fleet file."""

from __future__ import annotations

import sys
from pathlib import Path

from tokka.fleet.address import Address
from tokka.fleet.spec import ModelSpec
from tokka.settings import EMBEDDED_MODEL, environment_with


def worker_command(spec: ModelSpec, join: Address, token_file: Path, worker: str) -> list[str]:
    """Return the command of a worker with this id. It needs the variables of `worker_environment`."""
    # Without -P, `-m` would import modules from the working directory first.
    command = [sys.executable, "-P", "-m", "tokka", "worker"]
    if spec.model != EMBEDDED_MODEL:
        command.append(f"--model={spec.model}")
    # Other names of the model are the gateway's alone. A worker of another name is another model's.
    command.append(f"--served-model-name={spec.name}")
    return [*command, f"--join={join}", f"--join-token-file={token_file}", f"--worker-id={worker}"]


def worker_environment(spec: ModelSpec, drain_timeout_s: float) -> dict[str, str]:
    """Return the environment of a worker: this process's, with the model's settings in place of the gateway's.

    Settings are not in the command, because every user of the machine can read it, and an engine argument may be a
    hub's token. `drain_timeout_s`: the gateway's own, for a model without one.
    """
    return environment_with({"drain_timeout": drain_timeout_s, **spec.settings})

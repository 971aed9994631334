"""`tokka serve --fleet` as a program, for tests: a fleet file on a free port, and the workers as the log shows them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.marked_processes import processes_with
from tests.patches import patched
from tests.program import Program, eventually, free_port, running, runs
from tests.wire import metric

# Maximum seconds for the start of a worker with the scripted engine, on a busy machine.
START_S = 60


@dataclass(frozen=True)
class Worker:
    """A worker as the gateway's log shows it. `state`: starting, ready, draining, gone."""

    id: str
    model: str
    pid: int = 0
    state: str = "starting"
    # Whether the gateway has started it.
    is_planned: bool = True

    @property
    def runs(self) -> bool:
        return psutil.pid_exists(self.pid) and runs(psutil.Process(self.pid))


@dataclass
class Gateway:
    """A gateway, and what it keeps on disk."""

    program: Program
    file: Path
    state: Path
    # The API key of requests.
    key: str = "none"

    @property
    def log(self) -> list[dict[str, Any]]:
        return self.program.log

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the log's lines with this event and these fields."""
        return [line for line in self.log[:] if line["event"] == event and fields.items() <= line.items()]

    def wait_for(self, event: str, within_s: float = START_S, **fields: Any) -> None:
        """Wait until the log has this event with these fields."""
        eventually(lambda: bool(self.events(event, **fields)), within_s)

    def times(self, event: str, **fields: Any) -> list[float]:
        """Return when the log has this event and these fields, in seconds."""
        return [datetime.fromisoformat(line["time"]).timestamp() for line in self.events(event, **fields)]

    def workers(self, model: str = "m") -> list[Worker]:
        """Return the workers of a model that have been started or found, and have not ended, in this order."""
        found: dict[str, Worker] = {}
        for line in self.log[:]:
            worker = line.get("worker", "")
            match line["event"]:
                case "worker_starts" | "worker_found":
                    # One of an earlier gateway may have joined before it was found.
                    found.setdefault(worker, Worker(worker, line["model"]))
                case "worker_gone" if worker in found and not found[worker].is_planned:
                    found.pop(worker)
                case "worker_joined":
                    found[worker] = Worker(worker, line["model"], line["pid"], is_planned=worker in found)
                case "worker_state" if worker in found:
                    found[worker] = replace(found[worker], state=line["state"])
                case "worker_ended" | "worker_not_started":
                    found.pop(worker, None)
        return [one for one in found.values() if one.model == model]

    def ready(self, count: int = 1, model: str = "m", within_s: float = START_S) -> list[Worker]:
        """Wait until a model has exactly this many ready workers, and return them."""
        eventually(lambda: len(self._ready(model)) == count, within_s)
        return self._ready(model)

    def gone(self, worker: Worker, within_s: float = START_S) -> None:
        """Wait until the gateway knows of a worker's end."""
        self.wait_for("worker_ended", within_s, worker=worker.id)

    def ask(self, model: str = "m", prompt: str = "hello", **body: Any) -> httpx.Response:
        """Send a request, with 3 tokens at most unless it says more."""
        body = {"model": model, "prompt": prompt, "max_tokens": 3, **body}
        with self.program.client() as client:
            return client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {self.key}"})

    def served(self, model: str = "m", within_s: float = START_S) -> None:
        """Ask until the model answers."""
        eventually(lambda: self.ask(model).status_code == 200, within_s)

    def running(self, count: int) -> None:
        """Wait until exactly this many requests run."""
        with self.program.client() as client:
            eventually(lambda: metric(client, "tokka_requests_running") == count, 10)

    def _ready(self, model: str) -> list[Worker]:
        return [one for one in self.workers(model) if one.state == "ready"]


@contextmanager
def folder() -> Iterator[Path]:
    """Make a state folder. At the end, kill the workers that a test has left: a killed gateway does not stop them."""
    with tempfile.TemporaryDirectory(prefix="tokka-fleet-") as made:
        try:
            yield Path(made)
        finally:
            for process in processes_with({"TOKKA_STATE_DIR": made}):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def write(path: Path, models: Mapping[str, Any], host: str = "127.0.0.1", **keys: Any) -> Path:
    """Write a fleet file. A second file at the same path keeps the address of the first one."""
    join = yaml.safe_load(path.read_text())["join"] if path.exists() else f"{host}:{free_port()}"
    path.write_text(json.dumps({"join": join, **keys, "models": dict(models)}))
    return path


def fake(least: int = 1, most: int = 0, *arguments: str, **keys: Any) -> dict[str, Any]:
    """Return an entry with the scripted engine: `least` to `most` replicas, with engine arguments for its timing."""
    settings = {"engine": "fake", "engine_arg": list(arguments or ("step_s=0.02",))}
    return {"model": "m", "replicas": {"min": least, "max": most or max(1, least)}, "settings": settings, **keys}


@contextmanager
def serving(
    models: Mapping[str, Any], *arguments: str, patches: Mapping[str, str] | None = None, **keys: Any
) -> Iterator[Gateway]:
    """Run a gateway with these models, and with `keys` in its file. `patches`: see `tests.patches.patched`."""
    with folder() as state:
        write(state / "fleet.yaml", models, **keys)
        env = patched(state / "patches", patches) if patches else {}
        with started(state, *arguments, **env) as gateway:
            yield gateway


@contextmanager
def started(state: Path, *arguments: str, **env: str) -> Iterator[Gateway]:
    """Run a gateway with a state folder that holds its fleet file."""
    file = state / "fleet.yaml"
    env["TOKKA_STATE_DIR"] = str(state)
    with running("--fleet", str(file), *arguments, env=env, wait=False) as program:
        program.model = next(iter(yaml.safe_load(file.read_text())["models"]))
        yield Gateway(program, file, state)

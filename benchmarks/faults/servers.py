"""Start Tokka or vLLM's own server and observe it as an operator does, to compare both."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.faults.streams import Stream
from tests.program import TOKKA, free_port, runs
from tests.wire import metric

from tokka.engine.vllm.start.environment import prepare_environment
from tokka.settings import load_settings

NAME = "SmolLM2-135M-Instruct"
START_S = 180.0
GIVE_UP_S = 45.0
Figures = dict[str, Any]


def model_folder() -> Path:
    folders = sorted((load_settings({}).cache_dir / "models").glob(f"{NAME}-v?"))
    assert folders, "start `tokka serve` once: it converts the model"
    return folders[-1]


def command_of(server: str, port: int, model: Path, *more: str) -> list[str]:
    if server == "tokka":
        return [str(TOKKA), "serve", str(model), "--served-model-name", NAME, "--port", str(port), *more]
    options = []
    if server != "vllm-default":
        options = ["--max-model-len", "8192", "--enforce-eager", "--dtype", "bfloat16"]
        options += ["--kv-cache-memory-bytes", str(1 << 30)]
    if server == "vllm-drain":
        options += ["--shutdown-timeout", "120"]
    program = ["vllm.entrypoints.openai.api_server", "--model"]
    if server == "vllm-rust":
        program = ["vllm.entrypoints.cli.main", "serve"]
    return [
        sys.executable,
        "-m",
        *program,
        str(model),
        "--served-model-name",
        NAME,
        "--port",
        str(port),
        *options,
        *more,
    ]


@dataclass
class Server:
    """A running server, observed from outside as an operator does."""

    process: subprocess.Popen[bytes]
    url: str
    children: list[psutil.Process]
    # Seconds from the start to the first healthy response.
    ready_s: float = 0.0

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def status(self, path: str = "/health") -> int:
        """Return the status of a GET, or 0 if no response comes."""
        try:
            return httpx.get(self.url + path, timeout=5).status_code
        except httpx.HTTPError:
            return 0

    def ask(self, within_s: float = 10, **fields: Any) -> httpx.Response | None:
        body = {"model": NAME, "prompt": "The capital of Finland is", "max_tokens": 4, **fields}
        with contextlib.suppress(httpx.HTTPError):
            return httpx.post(f"{self.url}/v1/completions", json=body, timeout=within_s)
        return None

    def serves(self) -> bool:
        answer = self.ask()
        return answer is not None and answer.status_code == 200

    def child(self, name: str) -> psutil.Process:
        """Return the first child process with `name` in its process name."""
        return next(
            child for child in psutil.Process(self.process.pid).children(recursive=True) if name in child.name()
        )

    def running(self) -> float:
        return self.metric("vllm:num_requests_running")

    def metric(self, name: str) -> float:
        with httpx.Client(base_url=self.url, timeout=5) as client:
            return metric(client, name)

    def connections(self) -> int:
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr[1] == self.port for one in found)

    def exits_s(self, within_s: float) -> float | None:
        """Return after how many seconds the server itself exits, or None if it does not within `within_s`."""
        return after(lambda: self.process.poll() is not None, within_s)

    def left(self) -> int:
        """Return how many of its child processes still run."""
        return sum(runs(child) for child in self.children)


@contextmanager
def serving(
    kind: str,
    *options: str,
    model: Path | None = None,
    ranks: int = 1,
    open_files: int | None = None,
    stdout: int = subprocess.DEVNULL,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Start the server, yield it when it serves, and kill it with all its processes at the end.

    `variables` are added to its environment.
    """
    port = free_port()
    command = command_of(kind, port, model or model_folder(), "--tensor-parallel-size", str(ranks), *options)
    if open_files:
        command = ["prlimit", f"--nofile={open_files}", *command]
    environment = dict(os.environ)
    if kind not in ("tokka", "vllm-default"):
        # Tokka sets these variables for its own engine; both must start alike.
        prepare_environment(environment, cpu=True, eager=True, ranks=ranks, offline=True, verbose=False)
        environment["VLLM_CONFIGURE_LOGGING"] = "1"
    if kind != "tokka":
        # Without Tokka's plugin: vLLM would load it too, and it ties vLLM's processes to the server.
        environment["VLLM_PLUGINS"] = ""
    environment |= variables or {}
    began_s = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    server = Server(process, f"http://127.0.0.1:{port}", [])
    try:
        assert after(lambda: server.status() == 200, START_S) is not None, f"{kind} did not start"
        server.ready_s = time.monotonic() - began_s
        server.serves()
        server.children = psutil.Process(process.pid).children(recursive=True)
        yield server
    finally:
        for child in server.children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.kill()
        process.wait()


def after(fact: Callable[[], bool], within_s: float) -> float | None:
    """Return after how many seconds the fact holds, or None if it does not within `within_s`."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < within_s:
        if fact():
            return round(time.monotonic() - began_s, 2)
        time.sleep(0.05)
    return None


class Load:
    """Streams that run in background threads."""

    def __init__(self, server: Server, bodies: list[dict[str, Any]]) -> None:
        self.streams = [Stream({"model": NAME, **body}) for body in bodies]
        self._threads = [threading.Thread(target=one.read, args=(server.url,), daemon=True) for one in self.streams]
        for thread in self._threads:
            thread.start()
        for stream in self.streams:
            stream.has_begun.wait(60)

    def ends(self, hit_s: float, within_s: float) -> Figures:
        """Return how the streams ended, and how many seconds after `hit_s` the last one did."""
        for thread in self._threads:
            thread.join(max(0.0, hit_s + within_s - time.monotonic()))
        how = Counter(_how(stream) for stream in self.streams)
        last = max((stream.ended_s - hit_s for stream in self.streams if stream.ended_s), default=0.0)
        return {"streams": dict(how), "last_ended_s": round(last, 2)}


def _how(stream: Stream) -> str:
    if not stream.ended_s:
        return "hangs"
    if stream.broken:
        return "connection broken"
    if stream.status != 200:
        return f"status {stream.status}"
    said = (
        "error"
        if any("error" in chunk for chunk in stream.chunks)
        else "finish_reason"
        if stream.terminals()
        else "nothing"
    )
    return f"{said} and [DONE]" if stream.is_closed else f"{said}, then a bare end"

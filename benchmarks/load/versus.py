"""Compare Tokka and vLLM's own server, in turns on one machine: speed with defaults, and the front end's cost.

    scripts/bench defaults --rounds 3 --out docs/benchmarks/defaults.jsonl
    scripts/bench front --rounds 3 --out docs/benchmarks/front.jsonl

`defaults` runs the embedded model with each server's defaults, except a KV cache of the same size: vLLM's default takes
nearly all memory. `front` runs a model of one small layer, so that it measures the server around the engine; both run
the same engine in the same way. Each run adds one line of JSON to the file; a table of medians and ratios goes to the
screen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.servers import NAME, Server, model_folder, serving
from tokka.bench.load import run
from tokka.bench.plan import Plan, Tenant
from tokka.bench.sizes import Span
from tokka.settings import parse_size

ROOT = Path(__file__).parents[2]
KV_CACHE = "512M"
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """A load: simulated users, and tokens per completion."""

    users: int
    tokens: int
    stream: bool = True

    @property
    def label(self) -> str:
        return f"{'streamed' if self.stream else 'plain'} x{self.users}"


@dataclass(frozen=True, slots=True)
class Experiment:
    """A comparison: its loads, the kind of vLLM server, and Tokka's options."""

    loads: Sequence[Load]
    # vLLM's server, either with its defaults or with the engine set up as Tokka does it.
    rival: str
    # Options that make Tokka's engine work like the rival's.
    options: tuple[str, ...] = ()


DEFAULTS = Experiment([Load(1, 64), Load(8, 64), Load(32, 64)], "vllm-default")
FRONT = Experiment(
    [Load(32, 128), Load(128, 128), Load(32, 128, stream=False)],
    "vllm",
    ("--enforce-eager", "--engine-arg", "max_num_batched_tokens=2048"),
)


def memory_mb(server: Server) -> float:
    """Return the memory of all processes of a server, in MB; memory that they share counts once."""
    processes = [psutil.Process(server.process.pid), *server.children]
    return float(sum(process.memory_full_info().pss for process in processes) / 1e6)


def measure(server: Server, load: Load, seed: int, seconds: float) -> Line:
    plan = Plan(
        server.url,
        NAME,
        (Tenant("all", concurrency=load.users),),
        duration_s=seconds,
        warmup_s=seconds / 4,
        grace_s=20,
        stream=load.stream,
        prompt_tokens=Span(20, 20),
        max_tokens=Span(load.tokens, load.tokens),
        seed=seed,
        pid=server.process.pid,
    )
    figures = run(plan)[1]
    del figures["tenants"]
    return figures


def options_of(kind: str, experiment: Experiment) -> tuple[str, ...]:
    if kind == "tokka":
        return ("--kv-cache-memory", KV_CACHE, *experiment.options)
    # By default vLLM listens on every address.
    return ("--kv-cache-memory-bytes", str(parse_size(KV_CACHE)), "--host", "127.0.0.1")


def lines_of(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def runs(experiment: Experiment, model: Path, chosen: argparse.Namespace) -> Iterator[Line]:
    # Continue the file's round numbers. Each round is compared only within itself, so rounds of other days fit.
    first = 1 + max((line["round"] for line in lines_of(chosen.out)), default=-1)
    for place in range(first, first + chosen.rounds):
        kinds = ["tokka", experiment.rival]
        for kind in kinds if place % 2 == 0 else kinds[::-1]:
            with serving(kind, *options_of(kind, experiment), model=model) as server:
                about = {"server": "tokka" if kind == "tokka" else "vllm", "round": place}
                measure(server, Load(4, 32), 99, 4.0)
                for load in experiment.loads:
                    yield {**about, "load": load.label, "figures": measure(server, load, place, chosen.seconds)}
                yield {**about, "load": "", "figures": {"ready_s": server.ready_s, "memory_mb": memory_mb(server)}}


# Name, and the keys that lead to it in the figures.
METRICS = (
    ("output tokens/s", ("output_tokens_per_s",)),
    ("TTFT p50, s", ("ttft_s", "p50")),
    ("ITL p99, s", ("itl_s", "p99")),
    ("events per token", ("events_per_token",)),
    ("front CPU, us/token", ("front_cpu_us_per_token",)),
    ("front CPU, ms/request", ("front_cpu_ms_per_request",)),
    ("ready after, s", ("ready_s",)),
    ("memory, MB", ("memory_mb",)),
)


def _value(line: Line, path: Sequence[str]) -> float | None:
    found: Any = line["figures"]
    for name in path:
        found = (found or {}).get(name)
    return found


def table(lines: Sequence[Line]) -> str:
    rows = ["| load | figure | Tokka | vLLM | ratio |", "|---|---|---|---|---|"]
    for load in dict.fromkeys(line["load"] for line in lines):
        for name, path in METRICS:
            own, theirs = (
                {
                    line["round"]: _value(line, path)
                    for line in lines
                    if (line["load"], line["server"]) == (load, server)
                }
                for server in ("tokka", "vllm")
            )
            pairs = [(own[place], theirs[place]) for place in own if own[place] and theirs.get(place)]
            if pairs:
                ratio = statistics.median(one / other for one, other in pairs)
                medians = (statistics.median(values) for values in zip(*pairs, strict=True))
                cells = " | ".join(f"{median:.4g}" for median in medians)
                rows.append(f"| {load} | {name} | {cells} | {ratio:.2f}x |")
    return "\n".join(rows)


@contextmanager
def tiny_model() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.models.make_llama", str(model_folder()), folder]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield Path(folder)


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12, help="of each run; the first quarter does not count")
    parser.add_argument("--out", type=Path, required=True, help="added to, if it is there")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of what is in the file")
    return parser.parse_args(arguments)


def _go(experiment: Experiment, model: Path, chosen: argparse.Namespace) -> None:
    for line in runs(experiment, model, chosen):
        stamped = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cores": os.cpu_count(), **line}
        with chosen.out.open("a") as file:
            file.write(json.dumps(stamped) + "\n")
        print(line["server"], line["round"], line["load"], file=sys.stderr, flush=True)


def _experiment(run_all: Callable[[argparse.Namespace], None], arguments: Sequence[str]) -> None:
    chosen = _arguments(arguments)
    if not chosen.table:
        run_all(chosen)
    print(table(lines_of(chosen.out)))


def defaults(arguments: Sequence[str]) -> None:
    _experiment(lambda chosen: _go(DEFAULTS, model_folder(), chosen), arguments)


def front(arguments: Sequence[str]) -> None:
    def run_all(chosen: argparse.Namespace) -> None:
        with tiny_model() as model:
            _go(FRONT, model, chosen)

    _experiment(run_all, arguments)

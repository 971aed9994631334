"""Rounds of a comparison: the servers take turns, and each is measured in the same way.

Each measurement adds one line of JSON to a file. Ratios are computed within a round, so rounds of other days fit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.faults.servers import Server, model_folder, serving
from benchmarks.load.ratios import Line, table
from benchmarks.load.rivals import ROOT, binary, distribution, variables
from tokka.settings import parse_size

KV_CACHE = "512M"
# Context length of the small model, in tokens.
CONTEXT = 32768


@dataclass(frozen=True, slots=True)
class Subject:
    """A server that is measured, and its front end: the process that speaks HTTP."""

    server: Server
    front: psutil.Process

    @property
    def has_launcher(self) -> bool:
        """Tell whether the front end is not the server's first process."""
        return self.front.pid != self.server.process.pid


@dataclass(frozen=True, slots=True)
class Experiment:
    """A comparison of Tokka with other servers."""

    # Yields the label and the figures of each load. Arguments: the server, and a seed.
    measure: Callable[[Subject, int], Iterator[tuple[str, Line]]]
    # Kinds of vLLM's servers: with its defaults, or with the engine set up as Tokka does it.
    rivals: tuple[str, ...]
    # Options that make Tokka's engine work like the rivals'.
    options: tuple[str, ...] = ()
    # Options of all servers.
    common: tuple[str, ...] = ()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and all its threads. Linux only; psutil's figures have steps of 10 ms."""
    # What clock_getcpuclockid(3) returns.
    return time.clock_gettime((~pid << 3) | 2)


def memory_mb(processes: Sequence[psutil.Process]) -> float:
    """Return the memory of processes, in MB. Memory that processes share is divided among them (PSS)."""
    return float(sum(process.memory_full_info().pss for process in processes) / 1e6)


def subject_of(kind: str, server: Server, rust: Path | None) -> Subject:
    if kind == "vllm-rust":
        assert rust is not None
        return Subject(server, server.child(rust.name))
    return Subject(server, psutil.Process(server.process.pid))


def options_of(kind: str, experiment: Experiment) -> tuple[str, ...]:
    if kind == "tokka":
        return ("--kv-cache-memory", KV_CACHE, *experiment.common, *experiment.options)
    # By default vLLM listens on every address.
    return ("--kv-cache-memory-bytes", str(parse_size(KV_CACHE)), "--host", "127.0.0.1", *experiment.common)


def order_of(kinds: Sequence[str], place: int) -> list[str]:
    """Return the order of the servers in a round. Each round starts with another server."""
    first = place % len(kinds)
    return [*kinds[first:], *kinds[:first]]


def measured(subject: Subject, experiment: Experiment, seed: int) -> Iterator[tuple[str, Line]]:
    """Yield the figures of each load, then those of the server as a whole."""
    server = subject.server
    before_s = cpu_s(server.process.pid)
    for label, figures in experiment.measure(subject, seed):
        after_s = cpu_s(server.process.pid)
        if subject.has_launcher:
            # To tell whether the launcher does work for each request. The figures of the front end leave it out.
            figures["launcher_cpu_s"] = round(after_s - before_s, 4)
        yield label, figures
        before_s = after_s
    everything = [psutil.Process(server.process.pid), *server.children]
    whole = {"memory_mb": memory_mb(everything), "front_memory_mb": memory_mb([subject.front])}
    yield "", {"ready_s": server.ready_s, **whole}


def lines_of(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def runs(experiment: Experiment, model: Path, chosen: argparse.Namespace) -> Iterator[Line]:
    """Run all rounds, and yield a line for each load of each server."""
    kinds = ["tokka", *(kind for kind in experiment.rivals if kind != "vllm-rust" or chosen.rust_frontend)]
    # Continue the file's round numbers.
    first = 1 + max((line["round"] for line in lines_of(chosen.out)), default=-1)
    with distribution() as folder:
        for place in range(first, first + chosen.rounds):
            for kind in order_of(kinds, place):
                options = options_of(kind, experiment)
                more = variables(kind, folder, chosen.rust_frontend)
                with serving(kind, *options, model=model, variables=more) as server:
                    subject = subject_of(kind, server, chosen.rust_frontend)
                    about = {"server": kind.removesuffix("-default"), "round": place}
                    for label, figures in measured(subject, experiment, place):
                        yield {**about, "load": label, "figures": figures}


@contextmanager
def embedded_model() -> Iterator[Path]:
    """Yield the folder of the embedded model."""
    yield model_folder()


@contextmanager
def tiny_model() -> Iterator[Path]:
    """Yield the folder of a random Llama of one small layer with a long context."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "tests.models.make_llama", str(model_folder()), name]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        config = Path(name) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": CONTEXT}))
        yield Path(name)


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all comparisons have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="added to, if it is there")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of what is in the file")
    parser.set_defaults(rust_frontend=None)
    return parser


def add_rust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rust-frontend",
        type=binary,
        metavar="PATH",
        help="also compare vLLM's Rust front end: the file vllm/vllm-rs in the wheel of vLLM's version",
    )


def go(experiment: Experiment, model: AbstractContextManager[Path], chosen: argparse.Namespace) -> None:
    """Run the rounds and add a line to the file after each load, unless only the table is wanted. Print the table."""
    if not chosen.table:
        with model as folder:
            for line in runs(experiment, folder, chosen):
                stamped = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cores": os.cpu_count(), **line}
                with chosen.out.open("a") as file:
                    file.write(json.dumps(stamped) + "\n")
                print(line["server"], line["round"], line["load"], file=sys.stderr, flush=True)
    print(table(lines_of(chosen.out)))

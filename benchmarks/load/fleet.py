"""Measure the CPU time per token that the wire between a gateway and a worker adds.

    scripts/bench fleet --out docs/benchmarks/fleet.jsonl

The scripted engine gives each stream a token every 10 ms: in the server's own process, in a worker over a plain
connection, and in a worker over TLS. The figure is the CPU time of the server and its children. The ways take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.program import Program, running

from tokka.bench.load import run
from tokka.bench.plan import Plan, Tenant

ENGINE = ("--engine", "fake", "--engine-arg", "step_s=0.01", "--engine-arg", "max_running=256")
GATEWAY = (sys.executable, "-m", "benchmarks.load.fleet_gateway")
STREAMS = (8, 32)


def ways() -> dict[str, Callable[[], AbstractContextManager[Program]]]:
    return {
        "in process": lambda: running(*ENGINE),
        "plain": lambda: running(*ENGINE, entry=GATEWAY),
        "tls": lambda: running("--tls", *ENGINE, entry=GATEWAY),
    }


def us_per_token(program: Program, streams: int, seconds: float) -> float:
    plan = Plan(
        program.url,
        program.model,
        (Tenant("all", concurrency=streams),),
        duration_s=seconds,
        warmup_s=min(2.0, seconds / 3),
        pid=program.process.pid,
    )
    used: float = run(plan)[1]["server_cpu_us_per_token"]
    return used


def lines(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for place in range(chosen.rounds):
        for way, start in ways().items():
            with start() as program:
                for streams in STREAMS:
                    used = us_per_token(program, streams, chosen.seconds)
                    yield {"way": way, "streams": streams, "round": place, "us_per_token": used}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the medians, and the medians of what each way adds within its round."""
    rows = ["| streams | way | us/token | added |", "|---|---|---|---|"]
    for streams in STREAMS:
        by_way: dict[str, dict[int, float]] = {}
        for line in found:
            if line["streams"] == streams:
                by_way.setdefault(line["way"], {})[line["round"]] = line["us_per_token"]
        base = by_way.get("in process", {})
        for way, values in by_way.items():
            added = [value - base[place] for place, value in values.items() if place in base]
            more = f"{statistics.median(added):+.1f}" if added and way != "in process" else ""
            rows.append(f"| {streams} | {way} | {statistics.median(values.values()):.1f} | {more} |")
    return "\n".join(rows)


def fleet(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--out", type=Path, required=True, help="added to, if it is there")
    chosen = parser.parse_args(arguments)
    for line in lines(chosen):
        stamped = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **line}
        with chosen.out.open("a") as file:
            file.write(json.dumps(stamped) + "\n")
        print(json.dumps(line), file=sys.stderr, flush=True)
    print(table([json.loads(line) for line in chosen.out.read_text().splitlines()]))

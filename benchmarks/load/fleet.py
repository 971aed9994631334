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
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.program import Program, free_port, running

from tokka.bench.load import run
from tokka.bench.plan import Plan, Tenant
from tokka.fleet.token_file import ensure_token_file

OPTIONS = ("step_s=0.01", "max_running=256")
STREAMS = (8, 32)


def ways() -> dict[str, Callable[[], AbstractContextManager[Program]]]:
    return {
        "in process": lambda: running("--engine", "fake", *(f"--engine-arg={option}" for option in OPTIONS)),
        "plain": lambda: gateway(OPTIONS),
        "tls": lambda: gateway(OPTIONS, tls=True),
    }


@contextmanager
def gateway(options: Sequence[str] = (), *, tls: bool = False) -> Iterator[Program]:
    """Run a gateway of one scripted model with one worker, which is its child process."""
    with tempfile.TemporaryDirectory(prefix="tokka-bench-") as state:
        # With a certificate in the token file, connections use TLS on loopback, too.
        ensure_token_file(Path(state), tls=tls)
        settings = {"engine": "fake", "engine_arg": list(options), "log_level": "error"}
        model = {"replicas": {"min": 1, "max": 1}, "settings": settings}
        file = Path(state) / "fleet.yaml"
        file.write_text(json.dumps({"join": f"127.0.0.1:{free_port()}", "models": {"fake": model}}))
        with running("--fleet", str(file), env={"TOKKA_STATE_DIR": state}) as program:
            yield program


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

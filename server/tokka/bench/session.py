"""The runs of one command: every load on every server, in rounds. Each run gives one line of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokka.bench.compare import turns
from tokka.bench.figures import Figures
from tokka.bench.load import run
from tokka.bench.plan import Plan, Tenant
from tokka.bench.target import Target

Line = dict[str, Any]
# Seconds for a server to notice that the client gave up on requests, so that they do not burden the next run.
_REST_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """Either a rate, in requests a second, or a number of users."""

    rate: float | None = None
    concurrency: int | None = None

    @property
    def label(self) -> str:
        return f"{self.rate:g}/s" if self.rate is not None else f"x{self.concurrency}"


@dataclass(frozen=True, slots=True)
class Session:
    """The servers, loads and rounds of one command."""

    targets: Sequence[Target]
    loads: Sequence[Load]
    # Common to all runs. Each run sets the URL, model, tenant, pid and seed.
    plan: Plan
    rounds: int

    def runs(self, tell: Callable[[str], None]) -> Iterator[Line]:
        """Run everything, one run after the other, and yield a line for each. `tell` gets a message before each run."""
        total, number = self.rounds * len(self.loads) * len(self.targets), 0
        for place, order in turns(self.rounds, len(self.targets)):
            for load in self.loads:
                for server in order:
                    number += 1
                    target = self.targets[server]
                    tell(f"run {number} of {total}: {load.label} on {target.url}, {self.plan.duration_s:g} s")
                    figures = self._run(target, load, place)
                    yield {"server": server, "url": target.url, "round": place, "load": load.label, "figures": figures}
                    if figures["cut"] and number < total:
                        time.sleep(_REST_S)

    def _run(self, target: Target, load: Load, place: int) -> Figures:
        tenant = Tenant("all", target.key, rate=load.rate, concurrency=load.concurrency)
        plan = replace(
            self.plan,
            url=target.url,
            model=target.model,
            tenants=(tenant,),
            pid=target.pid,
            # Each round has its own arrivals and prompts, and all servers get the same ones in it.
            seed=self.plan.seed + place,
        )
        figures = run(plan)[1]
        # There is only one tenant.
        del figures["tenants"]
        return figures


def of(lines: Sequence[Line], server: int, load: str) -> list[Figures]:
    """Return the figures of a server's runs under a load, in the order of the rounds."""
    return [line["figures"] for line in lines if line["server"] == server and line["load"] == load]

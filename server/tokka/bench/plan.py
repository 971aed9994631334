"""What load is put on which server, and when its requests are due. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokka.bench.prompts import Content
from tokka.bench.sizes import Span
from tokka.bench.trace import Arrival, Trace

SIXTY_FOUR = Span(64, 64)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose requests they are, and how they come.

    With a rate, in requests a second, the loop is open: a request is sent when it is due, whatever became of those
    before it. With a concurrency it is closed: so many users, each of whom asks again when the answer is there.
    """

    name: str
    key: str = ""
    rate: float | None = None
    concurrency: int | None = None
    # Of each answer, if others than the plan's.
    max_tokens: int | None = None
    # How long a user thinks between an answer and the next question, on average.
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    url: str
    model: str
    tenants: tuple[Tenant, ...]
    # In it requests are sent; those that are due in the warm-up, its first part, do not count.
    duration_s: float = 30.0
    warmup_s: float = 5.0
    # How long the client waits for open answers after that.
    grace_s: float = 10.0
    api: str = "chat"
    stream: bool = True
    # If there are none, random words.
    prompts: tuple[Content, ...] = ()
    prompt_tokens: Span = SIXTY_FOUR
    same_prompt: bool = False
    max_tokens: Span = SIXTY_FOUR
    # When open loops' requests are due and how long they are; None: Poisson arrivals, of the lengths above.
    trace: Trace | None = None
    # Answers of exactly so many tokens.
    ignore_eos: bool = True
    seed: int = 1
    # Requests that arrive at once; the rate stays.
    burst: int = 1
    new_connections: bool = False
    max_connections: int = 2048
    # Of each run, and for each tenant whose loop is open.
    max_requests: int = 100_000
    slo_ttft_s: float = 1.0
    slo_tpot_s: float = 0.1
    # The server's first process, to count its CPU time.
    pid: int | None = None


def due(plan: Plan, tenant: Tenant, chance: random.Random) -> list[Arrival]:
    """Return what a tenant whose loop is open sends in a run; one more than the plan allows if it would be more."""
    assert tenant.rate is not None
    most = plan.max_requests + 1
    if plan.trace is not None:
        return list(itertools.islice(plan.trace.arrivals(tenant.rate, plan.duration_s, chance), most))
    moments = poisson(tenant.rate, plan.duration_s, chance, burst=plan.burst, most=most)
    return [Arrival(at_s, *size) for at_s, size in zip(moments, sizes(plan, tenant, chance), strict=False)]


def sizes(plan: Plan, tenant: Tenant, chance: random.Random) -> Iterator[tuple[int, int]]:
    """Yield the tokens of prompts and answers, without end."""
    while True:
        yield plan.prompt_tokens.draw(chance), tenant.max_tokens or plan.max_tokens.draw(chance)


def poisson(
    rate: float, duration_s: float, chance: random.Random, *, burst: int = 1, most: int | None = None
) -> list[float]:
    """Return the moments of a Poisson process; of one that is slower by so much, each moment so many times."""
    moments: list[float] = []
    at_s = 0.0
    while rate > 0 and (most is None or len(moments) < most):
        at_s += chance.expovariate(rate / burst)
        if at_s >= duration_s:
            break
        moments += [at_s] * burst
    return moments[:most]

"""The plan of a run: the server, the load, and when its requests are due. Pure functions."""

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
    """A source of requests, with its own key.

    With a rate, in requests a second, the loop is open: a request is sent when it is due, even if earlier ones are not
    complete. With a concurrency, the loop is closed: that many users each send their next request when the previous one
    completes.
    """

    name: str
    key: str = ""
    rate: float | None = None
    concurrency: int | None = None
    # Maximum tokens of each completion; None: as in the plan.
    max_tokens: int | None = None
    # Mean seconds that a user waits between a response and the next request.
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of one run."""

    url: str
    model: str
    tenants: tuple[Tenant, ...]
    # Seconds in which requests are sent. Requests due in the warm-up, its first part, do not count.
    duration_s: float = 30.0
    warmup_s: float = 5.0
    # Seconds that the client then waits for open requests.
    grace_s: float = 10.0
    api: str = "chat"
    stream: bool = True
    # Empty: random words.
    prompts: tuple[Content, ...] = ()
    prompt_tokens: Span = SIXTY_FOUR
    same_prompt: bool = False
    max_tokens: Span = SIXTY_FOUR
    # Arrivals and lengths of open loops; None: Poisson arrivals with the lengths above.
    trace: Trace | None = None
    # Completions have exactly `max_tokens` tokens.
    ignore_eos: bool = True
    seed: int = 1
    # Number of requests that arrive together. It does not change the rate.
    burst: int = 1
    new_connections: bool = False
    max_connections: int = 2048
    # Maximum requests of a run, and of each tenant with an open loop.
    max_requests: int = 100_000
    slo_ttft_s: float = 1.0
    slo_tpot_s: float = 0.1
    # The server's first process, to count its CPU time.
    pid: int | None = None


def due(plan: Plan, tenant: Tenant, chance: random.Random) -> list[Arrival]:
    """Return the requests of an open-loop tenant in a run: at most one more than the plan's maximum."""
    assert tenant.rate is not None
    most = plan.max_requests + 1
    if plan.trace is not None:
        return list(itertools.islice(plan.trace.arrivals(tenant.rate, plan.duration_s, chance), most))
    moments = poisson(tenant.rate, plan.duration_s, chance, burst=plan.burst, most=most)
    return [Arrival(at_s, *size) for at_s, size in zip(moments, sizes(plan, tenant, chance), strict=False)]


def sizes(plan: Plan, tenant: Tenant, chance: random.Random) -> Iterator[tuple[int, int]]:
    """Yield the numbers of tokens of prompts and completions, without end."""
    while True:
        yield plan.prompt_tokens.draw(chance), tenant.max_tokens or plan.max_tokens.draw(chance)


def poisson(
    rate: float, duration_s: float, chance: random.Random, *, burst: int = 1, most: int | None = None
) -> list[float]:
    """Return the arrival times of a Poisson process, in seconds. `burst`: number of requests that arrive together."""
    moments: list[float] = []
    at_s = 0.0
    while rate > 0 and (most is None or len(moments) < most):
        at_s += chance.expovariate(rate / burst)
        if at_s >= duration_s:
            break
        moments += [at_s] * burst
    return moments[:most]

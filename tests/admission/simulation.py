"""Simulates an engine in pure arithmetic. Virtual requests reach it through the real admission policy.

The arithmetic is the same as in the scripted engine (`engine/scripted_steps.py`). The clock is a number, so an hour of
load takes seconds. The policy learns the cost of a step from the steps, as in the program.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokka.admission.policy import AdmissionPolicy, Bounds, Decision
from tokka.admission.targets import Targets
from tokka.admission.ticket import Ticket
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import ServerOverloaded
from tokka.step_costs import StepCostLearner

_LOOK_EVERY_S = 0.1
TARGETS = Targets(ttft_s=1.0, tpot_s=0.05)


@dataclass(frozen=True)
class StepModel:
    """Timing and limits of a GPU-like engine, in seconds and tokens. `kv_tokens` 0: no limit."""

    step_s: float = 0.012
    per_choice_s: float = 0.0001
    per_prompt_token_s: float = 0.00002
    step_tokens: int = 8192
    max_running: int = 256
    kv_tokens: int = 0
    # Standard deviation of the logarithm of a step's time, and share of steps that take four times as long.
    noise: float = 0.0
    disturbed: float = 0.0

    def seconds_of(self, decoding: int, prompt_tokens: int) -> float:
        return self.step_s + self.per_choice_s * decoding + self.per_prompt_token_s * prompt_tokens

    def seconds(self, decoding: int, prompt_tokens: int, dice: random.Random) -> float:
        seconds = self.seconds_of(decoding, prompt_tokens)
        if self.noise:
            seconds *= math.exp(dice.gauss(0.0, self.noise))
        return seconds * 4 if self.disturbed and dice.random() < self.disturbed else seconds


@dataclass(eq=False)
class SimulatedRequest:
    """A virtual request and its result."""

    at_s: float
    tenant: str = "a"
    prompt_tokens: int = 40
    tokens: int = 64
    priority: int = 0
    # Token limit of the request; None: its true length.
    most_tokens: int | None = 1024
    # Number of tokens after which the client disconnects.
    leaves_after: int | None = None
    cached_tokens: int = 0
    ticket: Ticket | None = None
    to_compute: int = 0
    got: int = 0
    first_s: float | None = None
    last_s: float | None = None
    refusal: ServerOverloaded | None = None
    refused_s: float | None = None

    @property
    def ttft_s(self) -> float:
        assert self.first_s is not None
        return self.first_s - self.at_s

    def is_good(self, targets: Targets = TARGETS) -> bool:
        if self.first_s is None or self.last_s is None or self.got < self.tokens:
            return False
        further = max(1, self.tokens - 1)
        return self.ttft_s <= (targets.ttft_s or math.inf) and (self.last_s - self.first_s) / further <= (
            targets.tpot_s or math.inf
        )


@dataclass
class Simulation:
    """Runs virtual requests through the policy and a simulated engine."""

    policy: AdmissionPolicy
    model: StepModel
    seed: int = 7
    now_s: float = 0.0
    done: list[SimulatedRequest] = field(default_factory=list)
    # CPU seconds that the policy used, and the number of calls to it.
    policy_s: float = 0.0
    events: int = 0
    preemptions: int = 0
    steps: int = 0
    # Slow periods of the engine: start and end in seconds, and the factor on the time of a step.
    slow: list[tuple[float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._arrivals: list[tuple[float, int, SimulatedRequest]] = []
        self._by_ticket: dict[Ticket, SimulatedRequest] = {}
        self._running: list[SimulatedRequest] = []
        self._waiting: deque[SimulatedRequest] = deque()
        self._dice = random.Random(self.seed)
        self._next_look_s = 0.0
        self._count = 0
        self._learner = StepCostLearner()

    def add(self, requests: Iterable[SimulatedRequest]) -> None:
        for request in requests:
            self._count += 1
            heapq.heappush(self._arrivals, (request.at_s, self._count, request))

    def run(self, until_s: float) -> None:
        """Advance the clock up to `until_s`. Requests that are open then are not in `done`."""
        while self.now_s < until_s:
            if not self._running and not self._waiting and not self.policy.queue:
                if not self._arrivals:
                    return
                self._pass_to(self._arrivals[0][0])
            else:
                self._step()

    def measure(self) -> None:
        """Measure steps as an engine does before it is ready: single choices, full chunks, batches."""
        batch = min(32, self.model.max_running)
        for decoding, prompt in ((1, 0),) * 6 + ((0, self.model.step_tokens),) * 3 + ((batch, 0),) * 6:
            self._learner.add(self.model.seconds(decoding, prompt, self._dice), decoding, prompt)

    def describe(self) -> ModelInfo:
        model = self.model
        return ModelInfo(
            max_model_len=0,
            vocab_size=0,
            engine="",
            engine_version="",
            has_chat_template=False,
            max_running=model.max_running,
            step_tokens=model.step_tokens,
            kv_tokens=model.kv_tokens or None,
            costs=self._learner.costs,
        )

    def finished(self, request: SimulatedRequest) -> None:
        """Called when a request has ended. Subclasses override it to send the next request."""

    def _step(self) -> None:
        self._take_in()
        self._make_room()
        decoding, finishing, computed = [], [], 0
        chunk = self.model.step_tokens if len(self._running) == 1 else self.model.step_tokens // 2
        for request in self._running:
            if not request.to_compute:
                decoding.append(request)
                continue
            part = min(request.to_compute, chunk, self.model.step_tokens - computed)
            request.to_compute -= part
            computed += part
            if part and not request.to_compute:
                finishing.append(request)
        seconds = self.model.seconds(len(decoding), computed, self._dice)
        for from_s, until_s, factor in self.slow:
            seconds *= factor if from_s <= self.now_s < until_s else 1.0
        self._pass_to(self.now_s + seconds)
        self.steps += 1
        self._learner.add(seconds, len(decoding), computed, sum(r.prompt_tokens + r.got for r in decoding))
        for request in [*decoding, *finishing]:
            self._give_token(request)

    def _held(self) -> int:
        return sum(request.prompt_tokens - request.to_compute + request.got for request in self._running)

    def _take_in(self) -> None:
        while self._waiting and len(self._running) < self.model.max_running:
            first = self._waiting[0]
            if self.model.kv_tokens and self._running and self._held() + first.to_compute > self.model.kv_tokens:
                return
            self._running.append(self._waiting.popleft())

    def _make_room(self) -> None:
        model, running = self.model, self._running
        while model.kv_tokens and len(running) > 1 and self._held() + len(running) > model.kv_tokens:
            last = running.pop()
            last.to_compute = last.prompt_tokens + last.got
            self._waiting.appendleft(last)
            self.preemptions += 1

    def _give_token(self, request: SimulatedRequest) -> None:
        ticket = request.ticket
        assert ticket is not None
        request.got += 1
        request.last_s = self.now_s
        ticket.tokens, ticket.last_token_s = request.got, self.now_s
        self.policy.charge(ticket, 1)
        if request.first_s is None:
            request.first_s = ticket.first_token_s = self.now_s
            self._apply(self._timed(lambda: self.policy.begin(ticket, self.now_s)))
        if request.got in (request.tokens, request.leaves_after):
            self._running.remove(request)
            self.done.append(request)
            whole = request.got == request.tokens
            self._apply(self._timed(lambda: self.policy.end(ticket, self.now_s, is_whole=whole)))
            self.finished(request)

    def _timed(self, decide: Callable[[], list[Decision]]) -> list[Decision]:
        began_s = time.thread_time()
        decisions = decide()
        self.policy_s += time.thread_time() - began_s
        self.events += 1
        return decisions

    def _pass_to(self, then_s: float) -> None:
        while True:
            arrival_s = self._arrivals[0][0] if self._arrivals else math.inf
            event_s = min(arrival_s, self._next_look_s)
            if event_s > then_s:
                break
            self.now_s = max(self.now_s, event_s)
            if arrival_s <= self._next_look_s:
                self._arrive(heapq.heappop(self._arrivals)[2])
            else:
                self._next_look_s = self.now_s + _LOOK_EVERY_S
                stats = self._stats()
                self._apply(self._timed(partial(self.policy.observe, stats, self.now_s)))
        self.now_s = max(self.now_s, then_s)

    def _stats(self) -> EngineStats:
        usage = self._held() / self.model.kv_tokens if self.model.kv_tokens else 0.0
        running, waiting = len(self._running), len(self._waiting)
        return EngineStats(
            running, waiting, usage, running + waiting, self.steps, self.preemptions, self._learner.costs
        )

    def _arrive(self, request: SimulatedRequest) -> None:
        most = request.most_tokens if request.most_tokens is not None else request.tokens
        ticket = request.ticket = Ticket(
            request.tenant,
            1,
            self.now_s,
            request.prompt_tokens,
            request.cached_tokens,
            most,
            is_exact=request.most_tokens is None,
            priority=request.priority,
        )
        self._by_ticket[ticket] = request
        self._apply(self._timed(lambda: self.policy.arrive(ticket, self.now_s)))

    def _apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            request = self._by_ticket.pop(decision.ticket)
            if decision.refusal:
                request.refusal, request.refused_s = decision.refusal, self.now_s
                self.done.append(request)
                self.finished(request)
            else:
                request.to_compute = max(1, request.prompt_tokens - request.cached_tokens)
                self._waiting.append(request)


def poisson(rate: float, until_s: float, seed: int, **fields: Any) -> list[SimulatedRequest]:
    """Return Poisson arrivals at `rate` requests per second. The same seed gives the same arrivals."""
    rng = random.Random(seed)
    arrivals, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(rate)) < until_s:
        arrivals.append(SimulatedRequest(at_s, **fields))
    return arrivals


def mixed(rate: float, until_s: float, seed: int, **fields: Any) -> list[SimulatedRequest]:
    """Return Poisson arrivals with log-uniform lengths: prompts of 20 to 8,000 tokens, answers of 1 to 800."""
    rng = random.Random(seed)
    arrivals, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(rate)) < until_s:
        prompt = int(math.exp(rng.uniform(math.log(20), math.log(8000))))
        tokens = int(math.exp(rng.uniform(0.0, math.log(801))))
        arrivals.append(SimulatedRequest(at_s, prompt_tokens=prompt, tokens=tokens, **fields))
    return arrivals


def trace(rate: float, until_s: float, seed: int, most_tokens: int | None = 1024) -> list[SimulatedRequest]:
    """Return a synthetic trace with the shape of the conversations that Azure published in 2023.

    Arrivals come in bursts. Prompts and answers are log-normal, with medians of 1,000 and 130 tokens.
    """
    rng = random.Random(seed)
    arrivals: list[SimulatedRequest] = []
    window_s = 5.0
    for window in range(int(until_s / window_s)):
        # With a gamma-distributed rate, counts vary more than Poisson counts, as in the published trace.
        here = rate * rng.gammavariate(2.0, 0.5)
        at_s = window * window_s
        while (at_s := at_s + rng.expovariate(max(here, 1e-3))) < (window + 1) * window_s:
            prompt = int(min(8000, max(3, rng.lognormvariate(math.log(1000), 0.9))))
            tokens = int(min(1000, max(1, rng.lognormvariate(math.log(130), 1.0))))
            arrivals.append(SimulatedRequest(at_s, prompt_tokens=prompt, tokens=tokens, most_tokens=most_tokens))
    return arrivals


def simulation(
    targets: Targets | None = None,
    model: StepModel | None = None,
    bounds: Bounds | None = None,
    weights: dict[str, float] | None = None,
    kind: type[Simulation] = Simulation,
) -> Simulation:
    policy = AdmissionPolicy(bounds or Bounds(512), targets or Targets(), weights)
    sim = kind(policy, model or StepModel())
    sim.measure()
    policy.resize(sim.describe(), 0.0)
    return sim

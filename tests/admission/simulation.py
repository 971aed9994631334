"""An engine that is only arithmetic, and virtual requests that arrive at it through the admission policy.

A step computes a token for each running choice and up to `step_tokens` of the prompts that wait for their first one;
it takes `base_s` and some more for each. Time is a number here: an hour of load is simulated in seconds.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokka.admission.policy import AdmissionPolicy, Bounds, Decision, Targets
from tokka.admission.ticket import Ticket
from tokka.errors import ServerOverloaded

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class StepModel:
    """Like the embedded model on two cores: 25 ms alone, 60 ms at 32 choices."""

    base_s: float = 0.025
    per_choice_s: float = 0.0011
    per_prompt_token_s: float = 0.0006
    step_tokens: int = 512
    # Of the steps, how many take four times as long: another program has the processor.
    disturbed: float = 0.0

    def step_s(self, decoding: int, prompt_tokens: int, dice: random.Random) -> float:
        step_s = self.base_s + self.per_choice_s * decoding + self.per_prompt_token_s * prompt_tokens
        return step_s * 4 if dice.random() < self.disturbed else step_s

    def undisturbed(self) -> StepModel:
        """Return the engine that is as fast on average, and steady."""
        slower = 1 + 3 * self.disturbed
        return StepModel(
            self.base_s * slower, self.per_choice_s * slower, self.per_prompt_token_s * slower, self.step_tokens
        )

    def capacity(self, prompt_tokens: int, tokens: int, tpot_s: float) -> float:
        """Return the requests per second that can be served at this pace, by the arithmetic itself."""
        # At L running, L/tokens requests end in each step and as many prompts are computed.
        per_choice_s = self.per_choice_s + self.per_prompt_token_s * prompt_tokens / tokens
        running = (tpot_s - self.base_s) / per_choice_s
        return running / (tokens * tpot_s)


@dataclass(eq=False)
class Virtual:
    """A virtual request, and what became of it."""

    at_s: float
    tenant: str = "a"
    prompt_tokens: int = 40
    tokens: int = 64
    priority: int = 0
    ticket: Ticket | None = None
    left_of_prompt: int = 0
    got: int = 0
    first_s: float | None = None
    last_s: float | None = None
    refusal: ServerOverloaded | None = None
    refused_s: float | None = None

    @property
    def ttft_s(self) -> float:
        assert self.first_s is not None
        return self.first_s - self.at_s

    def is_good(self, ttft_s: float, tpot_s: float) -> bool:
        if self.first_s is None or self.last_s is None or self.got < self.tokens:
            return False
        return self.ttft_s <= ttft_s and (self.last_s - self.first_s) / (self.tokens - 1) <= tpot_s


@dataclass
class Simulation:
    policy: AdmissionPolicy
    model: StepModel
    now_s: float = 0.0
    most_running: int = 0
    done: list[Virtual] = field(default_factory=list)
    served_tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _arrivals: list[tuple[float, int, Virtual]] = field(default_factory=list)
    _by_ticket: dict[Ticket, Virtual] = field(default_factory=dict)
    _running: list[Virtual] = field(default_factory=list)
    _dice: random.Random = field(default_factory=lambda: random.Random(7))
    _next_look_s: float = 0.0
    _count: int = 0

    def add(self, requests: Iterable[Virtual]) -> None:
        for request in requests:
            self._count += 1
            heapq.heappush(self._arrivals, (request.at_s, self._count, request))

    def run(self, until_s: float) -> None:
        """Let time pass. Requests that are open at the end stay out of `done`."""
        while self.now_s < until_s:
            if not self._running and not self.policy.queue:
                if not self._arrivals:
                    return
                self._pass_to(self._arrivals[0][0])
            else:
                self._step()

    def finished(self, request: Virtual) -> None:
        """For a test that keeps a number of requests open: called when one has ended."""

    def _step(self) -> None:
        budget = self.model.step_tokens
        computed = 0
        decoding = [request for request in self._running if request.left_of_prompt == 0]
        finishing = []
        for request in self._running:
            if request.left_of_prompt and budget:
                part = min(budget, request.left_of_prompt)
                request.left_of_prompt -= part
                budget -= part
                computed += part
                if not request.left_of_prompt:
                    finishing.append(request)
        self._pass_to(self.now_s + self.model.step_s(len(decoding), computed, self._dice))
        for request in [*decoding, *finishing]:
            self._give_token(request)

    def _give_token(self, request: Virtual) -> None:
        assert request.ticket is not None
        request.got += 1
        request.first_s = request.first_s or self.now_s
        request.last_s = self.now_s
        self.served_tokens[request.tenant] += 1
        self._apply(self.policy.produced(request.ticket, 1, self.now_s))
        if request.got == request.tokens:
            self._running.remove(request)
            self.done.append(request)
            self._apply(self.policy.ended(request.ticket, request.got, self.now_s))
            self.finished(request)

    def _pass_to(self, then_s: float) -> None:
        while True:
            arrival_s = self._arrivals[0][0] if self._arrivals else float("inf")
            event_s = min(arrival_s, self._next_look_s)
            if event_s > then_s:
                break
            self.now_s = max(self.now_s, event_s)
            if arrival_s <= self._next_look_s:
                self._arrive(heapq.heappop(self._arrivals)[2])
            else:
                self._next_look_s = self.now_s + _LOOK_EVERY_S
                self._apply(self.policy.look(0, self.now_s))
        self.now_s = max(self.now_s, then_s)

    def _arrive(self, request: Virtual) -> None:
        ticket = request.ticket = Ticket(request.tenant, 1, self.now_s, request.prompt_tokens, request.priority)
        self._by_ticket[ticket] = request
        self._apply(self.policy.arrive(ticket, self.now_s))

    def _apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            request = self._by_ticket[decision.ticket]
            if decision.refusal:
                request.refusal, request.refused_s = decision.refusal, self.now_s
                self.done.append(request)
                self.finished(request)
            else:
                request.left_of_prompt = request.prompt_tokens
                self._running.append(request)
                self.most_running = max(self.most_running, len(self._running))


def poisson(rate: float, until_s: float, seed: int, **fields: object) -> list[Virtual]:
    """Return arrivals at this rate, the same for the same seed."""
    rng = random.Random(seed)
    arrivals, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(rate)) < until_s:
        arrivals.append(Virtual(at_s, **fields))  # type: ignore[arg-type]
    return arrivals


def simulation(
    targets: Targets | None = None,
    model: StepModel | None = None,
    most: int = 256,
    bounds: Bounds | None = None,
    weights: dict[str, float] | None = None,
) -> Simulation:
    model = model or StepModel()
    policy = AdmissionPolicy(bounds or Bounds(512), targets or Targets(), weights)
    policy.resize(most, model.step_tokens, 0.0)
    return Simulation(policy, model)

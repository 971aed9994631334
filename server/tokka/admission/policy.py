"""Decide which requests run, wait or are refused. Synchronous and pure.

Each event (`arrive`, `begin`, `end`, `leave`, `observe`) takes the time and returns the decisions that follow.
`controller.py` carries them out; a simulation in the tests counts them. `batch.py` knows the engine's room.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tokka.admission.batch import Batch
from tokka.admission.loop_room import LoopTime
from tokka.admission.queue import OUTPUT_COST, FairQueue
from tokka.admission.returns import Returns
from tokka.admission.targets import Targets
from tokka.admission.ticket import Ticket
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import MAX_RETRY_AFTER_S, ServerOverloaded

# Seconds until a retry while the costs of steps are unknown: a guess that keeps the clients' default back-off short.
RETRY_AFTER_S = 5
# Charge assumed for a choice until one has ended, and the weight of a new value in the average.
_COST, _COST_SHARE = 256.0, 0.1
# First and maximum doubt: the share by which a wait may exceed its prediction.
_FIRST_DOUBT, _MOST_DOUBT = 0.15, 3.0
# Change of the doubt by a queued request that missed or met the TTFT target. In balance, one in a hundred misses it.
_DOUBT_UP, _DOUBT_DOWN = 0.05, 0.0005
# Maximum errors of predictions kept until the controller takes them.
_MOST_ERRORS = 10_000

# The predicted time: to the first token, or for each further one.
Prediction = Literal["ttft", "pace"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the queue, in choices and prompt tokens, in total and for one tenant; None means no limit."""

    choices: int
    tokens: int | None = None
    choices_per_tenant: int | None = None
    tokens_per_tenant: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A ticket starts or, with `refusal`, is refused."""

    ticket: Ticket
    refusal: ServerOverloaded | None = None


class AdmissionPolicy:
    """All decisions of admission, over the queue and the running requests."""

    def __init__(
        self,
        bounds: Bounds,
        targets: Targets,
        weights: Mapping[str, float] | None = None,
        *,
        targets_of: Callable[[Targets, ModelInfo], Targets] = lambda given, _: given,
    ) -> None:
        """`targets_of` computes the targets on an engine from the given ones."""
        self._bounds = bounds
        self._given, self._targets_of = targets, targets_of
        self.targets = targets
        self.queue = FairQueue(weights)
        self.batch = Batch()
        self._returns = Returns()
        self._cost = _COST
        self._doubt = _FIRST_DOUBT
        self._long_s = 0.0
        self._tickets = 0
        # Actual minus predicted times, in seconds, until the controller takes them.
        self.errors: deque[tuple[Prediction, float]] = deque(maxlen=_MOST_ERRORS)

    # -- events

    def resize(self, model: ModelInfo, now_s: float) -> list[Decision]:
        """Apply the engine's capacity."""
        self.targets = self._targets_of(self._given, model)
        self.batch.resize(model, self.targets)
        return list(self._admit(now_s))

    def arrive(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """Start, queue or refuse a new request. Queued requests of another tenant may be refused to make room."""
        self._tickets += 1
        # The golden ratio spreads the tickets of any period evenly over the distribution.
        ticket.quantile = self._tickets * 0.6180339887 % 1.0
        self._learn_long(ticket)
        # design 2.1, 2.2
        if self._goes_in(ticket, now_s):
            # There is room now, so no request has to wait for refused ones that have not come back.
            self._returns.forget()
            self._start(ticket, now_s)
            return [Decision(ticket)]
        # design 2.3 to 2.5
        if refusal := self._refusal_of(ticket, now_s):
            return [Decision(ticket, refusal)]
        decisions: list[Decision] = []
        # design 2.6
        while self._is_over(ticket):
            victim = self.queue.most_greedy(ticket.tenant, ticket.choices)
            if victim is None:
                return [*decisions, Decision(ticket, self._full(ticket, now_s))]
            self.queue.remove(victim)
            decisions.append(Decision(victim, self._full(victim, now_s)))
        # design 2.7
        if self.targets.ttft_s is not None:
            left_s = self.targets.ttft_s - self.batch.loop.hops_s - self.batch.own_prompt_s(ticket)
            ticket.latest_start_s = ticket.arrived_s + left_s
        self.queue.put(ticket)
        return [*decisions, *self._admit(now_s)]

    def check_room(self, ticket: Ticket, now_s: float) -> None:
        """Raise the error with which `arrive` would refuse this ticket, before any work is spent on it."""
        # design 1.4
        if not self._goes_in(ticket, now_s) and (refusal := self._refusal_of(ticket, now_s)):
            raise refusal

    def begin(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """Record a running request's first token."""
        self.batch.begin(ticket)
        self._note("ttft", now_s - ticket.predicted_first_s)
        ticket.predicted_pace_s = self.batch.token_s() if self.batch.is_known else math.inf
        if ticket.has_waited and self.targets.ttft_s is not None:
            self._learn_wait(missed=now_s - ticket.arrived_s + self.batch.loop.hops_s > self.targets.ttft_s)
        return list(self._admit(now_s))

    def charge(self, ticket: Ticket, tokens: int) -> None:
        """Record tokens that a running request was given."""
        self.queue.charge(ticket.tenant, 0, tokens)

    def end(self, ticket: Ticket, now_s: float, *, is_whole: bool) -> list[Decision]:
        """Free the room of a running request. `is_whole`: the engine finished it."""
        self.batch.end(ticket, now_s)
        if ticket.first_token_s is not None:
            cost = (ticket.prompt_tokens + OUTPUT_COST * ticket.tokens) / ticket.choices
            self._cost += _COST_SHARE * (min(cost, 3 * self._cost) - self._cost)
            # design 8.6
            if is_whole:
                self.batch.lengths.add(ticket.tenant, ticket.most_tokens, max(1, ticket.given))
            self._learn_pace(ticket)
        return list(self._admit(now_s))

    def leave(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """Remove a queued request whose client has left or which timed out. Another may fit now."""
        return list(self._admit(now_s)) if self.queue.remove(ticket) else []

    def observe(self, stats: EngineStats, now_s: float, loop: LoopTime | None = None) -> list[Decision]:
        """Apply the engine's statistics and the loop's time; refuse late requests. Call this several times a second."""
        self.batch.observe(stats, now_s, loop or LoopTime())
        # design 4.5
        late = [Decision(ticket, self._late(ticket, now_s)) for ticket in self.queue if now_s > ticket.latest_start_s]
        for decision in late:
            self.queue.remove(decision.ticket)
        return [*late, *self._admit(now_s)]

    def refuse_all(self) -> list[Ticket]:
        """Empty the queue and return its tickets."""
        waiting = list(self.queue)
        for ticket in waiting:
            self.queue.remove(ticket)
        return waiting

    # -- estimates

    def backlog_s(self, now_s: float) -> float:
        """Return the expected seconds until a request behind all queued ones starts; 0 if none is queued."""
        if not self.queue:
            return 0.0
        if self.batch.is_known:
            behind = Ticket("", 1, now_s)
            return self.batch.wait_s(behind, self.queue.choices, self.queue.tokens, now_s)
        return now_s - min(ticket.arrived_s for ticket in self.queue)

    def _wait_s(self, ticket: Ticket, now_s: float, others: int = 0) -> float:
        """Return the expected seconds until a new ticket starts. `others`: choices before it that are not queued."""
        ahead = self.queue.ahead_of(ticket.tenant, max(1.0, self._cost))
        tokens = self.queue.tokens * ahead / max(1, self.queue.choices)
        return self.batch.wait_s(ticket, ahead + others, tokens, now_s)

    def _learn_wait(self, *, missed: bool) -> None:
        """Adapt the doubt to a queued request that missed or met the TTFT target."""
        # design 8.5
        change = _DOUBT_UP if missed else -_DOUBT_DOWN
        self._doubt = max(0.0, min(_MOST_DOUBT, self._doubt + change))

    def _learn_pace(self, ticket: Ticket) -> None:
        if ticket.first_token_s is None or ticket.given < 2:
            return
        pace_s = (ticket.last_token_s - ticket.first_token_s) / (ticket.given - 1)
        self._note("pace", pace_s - ticket.predicted_pace_s)
        if self.targets.tpot_s is not None:
            self.batch.learn_pace(kept=pace_s <= self.targets.tpot_s)

    def _learn_long(self, ticket: Ticket) -> None:
        if self.targets.ttft_s is not None:
            own_s = self.batch.own_prompt_s(ticket)
            unit = 0.01 * self.targets.ttft_s
            self._long_s += unit * (0.95 if own_s > self._long_s else -0.05)
            self._long_s = max(0.0, min(self.targets.ttft_s / 2, self._long_s))

    def _predict(self, ticket: Ticket, starts_s: float) -> None:
        if self.batch.is_known:
            ticket.predicted_first_s = starts_s + self.batch.own_prompt_s(ticket)

    def _note(self, kind: Prediction, error_s: float) -> None:
        if math.isfinite(error_s):
            self.errors.append((kind, error_s))

    # -- decisions

    def _admit(self, now_s: float) -> Iterator[Decision]:
        while (ticket := self._next(now_s)) is not None:
            self.queue.remove(ticket)
            # design 4.4
            if now_s > ticket.latest_start_s:
                yield Decision(ticket, self._late(ticket, now_s))
            else:
                self._start(ticket, now_s)
                yield Decision(ticket)

    def _next(self, now_s: float) -> Ticket | None:
        """Return the next ticket to start, if there is room for it.

        No ticket overtakes the first one, otherwise a large request could wait for ever. As the one exception, tenants
        with nothing running pass tenants that have something running, because room is kept free for them.
        """
        heads = self.queue.heads()
        # design 4.1
        if not heads or self.batch.takes(heads[0], now_s):
            return heads[0] if heads else None
        first, *others = heads
        # design 4.2
        if not self.batch.runs_for(first.tenant):
            return None
        # design 4.3
        new = (one for one in others if not self.batch.runs_for(one.tenant))
        return next((one for one in new if self.batch.takes(one, now_s)), None)

    def _goes_in(self, ticket: Ticket, now_s: float) -> bool:
        """Return whether a request starts on arrival. If it cannot be queued, it needs no room in the next step."""
        if self.queue:
            return False
        # design 2.1, 2.2
        return self.batch.takes(ticket, now_s) or (self._is_over(ticket) and self.batch.has_place(ticket))

    def _start(self, ticket: Ticket, now_s: float) -> None:
        if not ticket.has_waited:
            self._predict(ticket, now_s)
        self.batch.start(ticket, now_s)
        self.queue.charge(ticket.tenant, ticket.prompt_tokens, 0)

    def _refusal_of(self, ticket: Ticket, now_s: float) -> ServerOverloaded | None:
        """Return the error of a ticket that may not even wait."""
        # design 2.3, 2.4
        if refusal := self._too_late(ticket, now_s) or self._over_own_bound(ticket, now_s):
            return refusal
        # design 2.5
        if self._is_over(ticket) and self.queue.most_greedy(ticket.tenant, ticket.choices) is None:
            return self._full(ticket, now_s)
        return None

    def _is_over(self, ticket: Ticket) -> bool:
        queue, bounds = self.queue, self._bounds
        return queue.choices + ticket.choices > bounds.choices or _exceeds(
            queue.tokens, ticket.prompt_tokens, bounds.tokens
        )

    def _over_own_bound(self, ticket: Ticket, now_s: float) -> ServerOverloaded | None:
        bounds = self._bounds
        choices, tokens = self.queue.waiting_of(ticket.tenant)
        if bounds.choices_per_tenant is not None and choices + ticket.choices > bounds.choices_per_tenant:
            why = f"{choices} of your choices are queued already; the maximum is {bounds.choices_per_tenant}."
        elif _exceeds(tokens, ticket.prompt_tokens, bounds.tokens_per_tenant):
            why = f"Your prompts of {tokens} tokens are queued already; the maximum is {bounds.tokens_per_tenant}."
        else:
            return None
        return self._refusal(why, ticket, now_s)

    def _too_late(self, ticket: Ticket, now_s: float) -> ServerOverloaded | None:
        """Return the error of a ticket that would probably miss the TTFT target."""
        # design 3.1
        if self.targets.ttft_s is None:
            return None
        # design 3.2
        wait_s = self._wait_s(ticket, now_s)
        ticket.has_waited = True
        self._predict(ticket, now_s + wait_s)
        own_s = max(self._long_s, self.batch.own_prompt_s(ticket))
        left_s = self.targets.ttft_s - (now_s - ticket.arrived_s) - self.batch.loop.hops_s - own_s
        allowed_s = max(0.0, left_s) / (1 + self._doubt)
        # A request that can start at once may do so, however long its own prompt takes. (design 3.3, 3.4)
        if wait_s == 0 or wait_s <= allowed_s:
            return None
        why = (
            f"The server is busy: your request would wait {wait_s:.1f} s in the queue, more than its target of "
            f"{self.targets.ttft_s:g} s to the first token allows."
        )
        return self._refusal(why, ticket, now_s)

    def _late(self, ticket: Ticket, now_s: float) -> ServerOverloaded:
        self._learn_wait(missed=True)
        why = "The server is busier than predicted: your request could not start in time for its first-token target."
        return self._refusal(why, ticket, now_s)

    def _full(self, ticket: Ticket, now_s: float) -> ServerOverloaded:
        # Without numbers, which would reveal the load of other tenants.
        return self._refusal("The server is busy and its queue is full.", ticket, now_s)

    def _refusal(self, why: str, ticket: Ticket, now_s: float) -> ServerOverloaded:
        after_s: float = RETRY_AFTER_S
        # design 6.1
        if self.batch.is_known:
            after_s = max(1.0, self._wait_s(ticket, now_s, self._returns.choices(now_s)))
        after_s = self._returns.book(ticket.choices, after_s, self.batch.cost_s(ticket), now_s)
        return ServerOverloaded(f"{why} Retry in {math.ceil(after_s)} s.", retry_after_s=after_s)

    def retry_after_s(self, ticket: Ticket, now_s: float) -> float:
        """Return the seconds after which a timed-out ticket would probably have started."""
        return RETRY_AFTER_S if not self.batch.is_known else min(MAX_RETRY_AFTER_S, self._wait_s(ticket, now_s))


def _exceeds(waiting: int, more: int, most: int | None) -> bool:
    # A single prompt may always wait: the engine's context bounds its length.
    return most is not None and waiting > 0 and waiting + more > most

"""Who may run now, who waits, who is refused: all decisions of admission, synchronous and pure.

Each event (`arrive`, `begin`, `end`, `leave`, `observe`) takes the time and returns the decisions that follow;
`controller.py` carries them out, a simulation in the tests counts them. What the engine can take is in `batch.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tokka.admission.batch import Batch
from tokka.admission.queue import OUTPUT_COST, FairQueue
from tokka.admission.returns import Returns
from tokka.admission.targets import Targets
from tokka.admission.ticket import Ticket
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import MAX_RETRY_AFTER_S, ServerOverloaded

# Until something is known of the engine's steps: an honest guess that keeps the clients' default back-off short.
RETRY_AFTER_S = 5
# What a choice is charged, until one has ended, and of a new value in the average.
_COST, _COST_SHARE = 256.0, 0.1
# How much longer than predicted a wait may turn out: at first, and how fast that is learnt from those who waited. In
# balance one in a hundred waits longer.
_FIRST_DOUBT, _MOST_DOUBT = 0.15, 3.0
_DOUBT_UP, _DOUBT_DOWN = 0.05, 0.0005
# Errors of predictions that are kept until somebody takes them.
_MOST_ERRORS = 10_000

# Of what: the time to the first token, or for each further one.
Prediction = Literal["ttft", "pace"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait, in choices and in tokens of prompts, in all and of one tenant; None: no bound."""

    choices: int
    tokens: int | None = None
    choices_per_tenant: int | None = None
    tokens_per_tenant: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A ticket's turn has come, or with `refusal` it is sent away."""

    ticket: Ticket
    refusal: ServerOverloaded | None = None


class AdmissionPolicy:
    def __init__(
        self,
        bounds: Bounds,
        targets: Targets,
        weights: Mapping[str, float] | None = None,
        *,
        targets_of: Callable[[Targets, ModelInfo], Targets] = lambda given, _: given,
    ) -> None:
        """`targets_of`: makes the targets of an engine from those that are given."""
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
        # Actual minus predicted, in seconds, until somebody takes them.
        self.errors: deque[tuple[Prediction, float]] = deque(maxlen=_MOST_ERRORS)

    # -- events

    def resize(self, model: ModelInfo, now_s: float) -> list[Decision]:
        """Take over what the engine can run at once."""
        self.targets = self._targets_of(self._given, model)
        self.batch.resize(model, self.targets)
        return list(self._admit(now_s))

    def arrive(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """Let a new request run, wait, or refuse it; others may have to make room for it."""
        self._tickets += 1
        # Golden section: the tickets of any stretch of time are spread evenly over the distribution.
        ticket.quantile = self._tickets * 0.6180339887 % 1.0
        self._learn_long(ticket)
        if self._goes_in(ticket, now_s):
            # Room is there for whoever comes: nobody need wait for those who have not come back.
            self._returns.forget()
            self._start(ticket, now_s)
            return [Decision(ticket)]
        if refusal := self._refusal_of(ticket, now_s):
            return [Decision(ticket, refusal)]
        decisions: list[Decision] = []
        while self._is_over(ticket):
            victim = self.queue.most_greedy(ticket.tenant, ticket.choices)
            if victim is None:
                return [*decisions, Decision(ticket, self._full(ticket, now_s))]
            self.queue.remove(victim)
            decisions.append(Decision(victim, self._full(victim, now_s)))
        if self.targets.ttft_s is not None:
            ticket.latest_start_s = ticket.arrived_s + self.targets.ttft_s - self.batch.own_prompt_s(ticket)
        self.queue.put(ticket)
        return [*decisions, *self._admit(now_s)]

    def check_room(self, ticket: Ticket, now_s: float) -> None:
        """Raise what `arrive` would refuse this ticket with, before anything is spent on it."""
        if not self._goes_in(ticket, now_s) and (refusal := self._refusal_of(ticket, now_s)):
            raise refusal

    def begin(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """Note a running request's first token."""
        self.batch.begin(ticket)
        self._note("ttft", now_s - ticket.predicted_first_s)
        ticket.predicted_pace_s = self.batch.token_s() if self.batch.is_known else math.inf
        if ticket.has_waited and self.targets.ttft_s is not None:
            self._learn_wait(missed=now_s - ticket.arrived_s > self.targets.ttft_s)
        return list(self._admit(now_s))

    def charge(self, ticket: Ticket, tokens: int) -> None:
        """Note tokens that a running request was given."""
        self.queue.charge(ticket.tenant, 0, tokens)

    def end(self, ticket: Ticket, now_s: float, *, is_whole: bool) -> list[Decision]:
        """Give back the room of a running request. `is_whole`: it was not given up before its end."""
        self.batch.end(ticket, now_s)
        if ticket.first_token_s is not None:
            cost = (ticket.prompt_tokens + OUTPUT_COST * ticket.tokens) / ticket.choices
            self._cost += _COST_SHARE * (min(cost, 3 * self._cost) - self._cost)
            if is_whole:
                self.batch.lengths.add(ticket.tenant, ticket.most_tokens, max(1, ticket.given))
            self._learn_pace(ticket)
        return list(self._admit(now_s))

    def leave(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """Take out a waiting request whose owner has left or run out of time; another may fit now."""
        return list(self._admit(now_s)) if self.queue.remove(ticket) else []

    def observe(self, stats: EngineStats, now_s: float) -> list[Decision]:
        """Take what the engine says, and judge the queue by it; to be called several times a second."""
        self.batch.observe(stats, now_s)
        late = [Decision(ticket, self._late(ticket, now_s)) for ticket in self.queue if now_s > ticket.latest_start_s]
        for decision in late:
            self.queue.remove(decision.ticket)
        return [*late, *self._admit(now_s)]

    def refuse_all(self) -> list[Ticket]:
        """Empty the queue."""
        waiting = list(self.queue)
        for ticket in waiting:
            self.queue.remove(ticket)
        return waiting

    # -- estimates

    def _wait_s(self, ticket: Ticket, now_s: float, others: int = 0) -> float:
        """Return how long a new ticket would probably wait for its turn. `others`: choices that come before it, beside
        those who wait."""
        ahead = self.queue.ahead_of(ticket.tenant, max(1.0, self._cost))
        tokens = self.queue.tokens * ahead / max(1, self.queue.choices)
        return self.batch.wait_s(ticket, ahead + others, tokens, now_s)

    def _learn_wait(self, *, missed: bool) -> None:
        """Note how it ended for one who was let in to wait."""
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
            if now_s > ticket.latest_start_s:
                yield Decision(ticket, self._late(ticket, now_s))
            else:
                self._start(ticket, now_s)
                yield Decision(ticket)

    def _next(self, now_s: float) -> Ticket | None:
        """Return whose turn it is, if there is room for it. Nobody overtakes who is next, or a large request would wait
        for ever; only those who have nothing running pass those who have, for there is room kept for them."""
        heads = self.queue.heads()
        if not heads or self.batch.takes(heads[0], now_s):
            return heads[0] if heads else None
        first, *others = heads
        if not self.batch.runs_for(first.tenant):
            return None
        new = (one for one in others if not self.batch.runs_for(one.tenant))
        return next((one for one in new if self.batch.takes(one, now_s)), None)

    def _goes_in(self, ticket: Ticket, now_s: float) -> bool:
        """Whether a request starts on arrival. One that may not wait need not find room in the next step."""
        if self.queue:
            return False
        return self.batch.takes(ticket, now_s) or (self._is_over(ticket) and self.batch.has_place(ticket))

    def _start(self, ticket: Ticket, now_s: float) -> None:
        if not ticket.has_waited:
            self._predict(ticket, now_s)
        self.batch.start(ticket, now_s)
        self.queue.charge(ticket.tenant, ticket.prompt_tokens, 0)

    def _refusal_of(self, ticket: Ticket, now_s: float) -> ServerOverloaded | None:
        """Return why this ticket may not even wait."""
        if refusal := self._too_late(ticket, now_s) or self._over_own_bound(ticket, now_s):
            return refusal
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
            why = f"{choices} choices of yours wait already, of at most {bounds.choices_per_tenant}."
        elif _exceeds(tokens, ticket.prompt_tokens, bounds.tokens_per_tenant):
            why = f"Prompts of {tokens} tokens of yours wait already, of at most {bounds.tokens_per_tenant}."
        else:
            return None
        return self._refusal(why, ticket, now_s)

    def _too_late(self, ticket: Ticket, now_s: float) -> ServerOverloaded | None:
        """Refuse what would miss the target for first tokens, as far as can be told."""
        if self.targets.ttft_s is None:
            return None
        wait_s = self._wait_s(ticket, now_s)
        ticket.has_waited = True
        self._predict(ticket, now_s + wait_s)
        own_s = max(self._long_s, self.batch.own_prompt_s(ticket))
        left_s = self.targets.ttft_s - (now_s - ticket.arrived_s) - own_s
        allowed_s = max(0.0, left_s) / (1 + self._doubt)
        # What can start at once may, however long its own prompt takes.
        if wait_s == 0 or wait_s <= allowed_s:
            return None
        why = (
            f"The server is busy: your request would wait {wait_s:.1f} s for its turn, more than its target of "
            f"{self.targets.ttft_s:g} s to the first token allows."
        )
        return self._refusal(why, ticket, now_s)

    def _late(self, ticket: Ticket, now_s: float) -> ServerOverloaded:
        self._learn_wait(missed=True)
        why = "The server is busier than it seemed: your turn did not come in time for the target to the first token."
        return self._refusal(why, ticket, now_s)

    def _full(self, ticket: Ticket, now_s: float) -> ServerOverloaded:
        # Without numbers: they would tell one tenant of the others' load.
        return self._refusal("The server is busy and its queue is full.", ticket, now_s)

    def _refusal(self, why: str, ticket: Ticket, now_s: float) -> ServerOverloaded:
        after_s: float = RETRY_AFTER_S
        if self.batch.is_known:
            after_s = max(1.0, self._wait_s(ticket, now_s, self._returns.choices(now_s)))
        after_s = self._returns.book(ticket.choices, after_s, self.batch.cost_s(ticket), now_s)
        return ServerOverloaded(f"{why} Retry in {math.ceil(after_s)} s.", retry_after_s=after_s)

    def retry_after_s(self, ticket: Ticket, now_s: float) -> float:
        """Return when a ticket that has given up would probably have had its turn."""
        return RETRY_AFTER_S if not self.batch.is_known else min(MAX_RETRY_AFTER_S, self._wait_s(ticket, now_s))


def _exceeds(waiting: int, more: int, most: int | None) -> bool:
    # One prompt may wait however long it is: the engine's context bounds it.
    return most is not None and waiting > 0 and waiting + more > most

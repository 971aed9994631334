"""Who may run now, who waits, who is refused: all decisions of admission, synchronous and pure.

Each event (`arrive`, `produced`, `ended`, `leave`, `look`) takes the time and returns the decisions that follow;
`controller.py` carries them out, a simulation in the tests counts them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tokka.admission.estimate import Average
from tokka.admission.limit import ConcurrencyLimit
from tokka.admission.queue import OUTPUT_COST, FairQueue
from tokka.admission.ticket import Ticket
from tokka.errors import MAX_RETRY_AFTER_S, ServerOverloaded

# Until something has ended: an honest guess that keeps the clients' default back-off short, and what one is charged.
RETRY_AFTER_S = 5
_COST = 256.0
# So long without a token, by the clock and by the pace of the others.
_STALLED_S = 1.0
_STALLED_TOKENS = 10
# One part in so many of the limit, for tenants that have nothing running.
_NEWCOMERS = 8
# Prompts may hold the others up for as long as so many tokens take.
_PREFILL = 3
# Of the time a request could wait, how much it is let in for: what is estimated happens later as often as sooner, and a
# line that is longer than it takes to keep the engine busy serves nobody.
_CAUTION = 0.4


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait, in choices and in tokens of prompts, in all and of one tenant; None: no bound."""

    choices: int
    tokens: int | None = None
    choices_per_tenant: int | None = None
    tokens_per_tenant: int | None = None


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds to the first token and for each further one; None: as it comes."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A ticket's turn has come, or with `refusal` it is sent away."""

    ticket: Ticket
    refusal: ServerOverloaded | None = None


class AdmissionPolicy:
    def __init__(self, bounds: Bounds, targets: Targets, weights: Mapping[str, float] | None = None) -> None:
        self._bounds = bounds
        self._ttft_s = targets.ttft_s
        self._tpot_s = targets.tpot_s
        self.queue = FairQueue(weights)
        self.limit = ConcurrencyLimit(targets.tpot_s)
        self.running = 0
        # Tokens of prompts that run and have no first token yet; what one step of the engine takes of them.
        self._prefilling = 0
        self._step_tokens: int | None = None
        self._engine_waits = False
        # Since the last look: somebody found no room.
        self._wanted = False
        # For each choice: from its admission to its end, and to its first token; and what it was charged.
        self._service_s = Average()
        self._start_s = Average()
        self._cost = Average()
        # For each token of the prompts that are computed together, whatever else goes on meanwhile.
        self._prefill_s = Average()
        # In the order of their admission.
        self._tickets: dict[Ticket, None] = {}
        self._running_of: Counter[str] = Counter()
        # What has the engine to itself for now.
        self._alone: Ticket | None = None
        # When the last of those who were sent away has been told to come back.
        self._promised_s = 0.0

    # -- events

    def resize(self, most: int, step_tokens: int | None, now_s: float) -> list[Decision]:
        """Take over what the engine can run at once: choices, and tokens of prompts in one step."""
        self.limit.resize(most)
        self._step_tokens = step_tokens
        return list(self._admit(now_s))

    def arrive(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """Let a new request run, wait, or refuse it; others may have to make room for it."""
        if self._goes_in(ticket):
            # Room is there for whoever comes: nobody need wait for those who have not come back.
            self._promised_s = 0.0
            self._start(ticket, now_s)
            return [Decision(ticket)]
        self._wanted = True
        if refusal := self._refusal_of(ticket, now_s):
            return [Decision(ticket, refusal)]
        decisions: list[Decision] = []
        while self._is_over(ticket):
            victim = self.queue.most_greedy(ticket.tenant, ticket.choices)
            if victim is None:
                return [*decisions, Decision(ticket, self._full(ticket, now_s))]
            self.queue.remove(victim)
            decisions.append(Decision(victim, self._full(victim, now_s)))
        if self._ttft_s is not None:
            ticket.latest_start_s = ticket.arrived_s + self._ttft_s - self._start_s.or_else(0.0)
        ticket.promised_limit = self.limit.value
        self.queue.put(ticket)
        return [*decisions, *self._admit(now_s)]

    def check_room(self, ticket: Ticket, now_s: float) -> None:
        """Raise what `arrive` would refuse this ticket with, before anything is spent on it."""
        if not self._goes_in(ticket):
            self._wanted = True
            refusal = self._refusal_of(ticket, now_s)
            if refusal:
                raise refusal

    def produced(self, ticket: Ticket, tokens: int, now_s: float) -> list[Decision]:
        """Note tokens that a running request was given, the first ones with the time."""
        self.queue.charge(ticket.tenant, 0, tokens)
        ticket.last_token_s = now_s
        if ticket.first_token_s is None:
            return self._begin(ticket, now_s)
        if ticket.is_stalled:
            # What has gathered meanwhile comes at once.
            ticket.is_stalled = False
            self.limit.decodes(ticket.choices, now_s)
        else:
            self.limit.produced(tokens)
        return []

    def _begin(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """The first token belongs to the prompt's time."""
        ticket.first_token_s = now_s
        self._prefilling -= ticket.prompt_tokens
        self._start_s.add(now_s - ticket.admitted_s)
        self._prefill_s.add((now_s - ticket.admitted_s) / max(1, ticket.prefilling))
        self.limit.decodes(ticket.choices, now_s)
        return list(self._admit(now_s))

    def ended(self, ticket: Ticket, tokens: int, now_s: float) -> list[Decision]:
        """Give back the room of a running request that was served so many tokens, however it ended."""
        self.running -= ticket.choices
        self._tickets.pop(ticket, None)
        if ticket is self._alone:
            self._alone = None
        self._running_of[ticket.tenant] -= 1
        if not self._running_of[ticket.tenant]:
            del self._running_of[ticket.tenant]
        self.limit.ended(ticket.choices, now_s)
        if ticket.first_token_s is None:
            # One that never got a token says nothing about how long the others take.
            self._prefilling -= ticket.prompt_tokens
            return list(self._admit(now_s))
        self._service_s.add(now_s - ticket.admitted_s)
        self._cost.add((ticket.prompt_tokens + OUTPUT_COST * tokens) / ticket.choices)
        if not ticket.is_stalled:
            self.limit.stops(ticket.choices, now_s)
        if tokens > ticket.choices and not ticket.was_stalled:
            self.limit.kept((ticket.last_token_s - ticket.first_token_s) / (tokens / ticket.choices - 1))
        return list(self._admit(now_s))

    def leave(self, ticket: Ticket, now_s: float) -> list[Decision]:
        """Take out a waiting request whose owner has left or run out of time; another may fit now."""
        return list(self._admit(now_s)) if self.queue.remove(ticket) else []

    def look(self, engine_waiting: int, now_s: float) -> list[Decision]:
        """Judge the pace and the queue; to be called several times a second. `engine_waiting`: the engine's own."""
        # It has no memory for what it was given: more of it would only wait there, where nobody can refuse it.
        self._engine_waits = engine_waiting > 0
        self._set_stalled_aside(now_s)
        if self._alone is not None and now_s - self._alone.admitted_s >= self._alone.alone_s:
            self._alone = None
        self.limit.look(self._wanted or bool(self.queue), now_s)
        self._wanted = False
        late = [Decision(ticket, self._late(ticket, now_s)) for ticket in self.queue if now_s > ticket.latest_start_s]
        for decision in late:
            self.queue.remove(decision.ticket)
        return [*late, *self._admit(now_s)]

    def _set_stalled_aside(self, now_s: float) -> None:
        """Who does not read gets no tokens: that says nothing about the pace of the others."""
        longest_s = max(_STALLED_S, _STALLED_TOKENS * self.limit.pace_s)
        for ticket in self._tickets:
            if ticket.first_token_s is not None and not ticket.is_stalled and now_s - ticket.last_token_s > longest_s:
                ticket.is_stalled = ticket.was_stalled = True
                self.limit.stops(ticket.choices, now_s)

    def refuse_all(self) -> list[Ticket]:
        """Empty the queue."""
        waiting = list(self.queue)
        for ticket in waiting:
            self.queue.remove(ticket)
        return waiting

    # -- estimates

    def expected_wait_s(self, tenant: str, choices: int, now_s: float) -> float:
        """Return how long a new request of this tenant would probably wait for its turn."""
        ahead = self.queue.ahead_of(tenant, max(1.0, self._cost.or_else(_COST)))
        missing = ahead + choices - (self.limit.value - self.running)
        # Waiting for a place, or for the prompts before it, whichever takes longer.
        prompts = self._prefilling + self.queue.tokens * ahead / max(1, self.queue.choices)
        wait_s = prompts * self._prefill_s.or_else(0.0) if prompts > self._prefill_room() else 0.0
        if missing > 0:
            wait_s = max(wait_s, missing / self._rate(now_s), self._next_ends_s(missing, now_s))
        return wait_s

    def _next_ends_s(self, choices: int, now_s: float) -> float:
        """Return in what time so many choices will have ended, if each takes as long as most do: those that began
        together end together, and until then nothing does."""
        service_s = self._service_s.or_else(0.0)
        for ticket in self._tickets:
            choices -= ticket.choices
            if choices <= 0:
                return max(0.0, ticket.admitted_s + service_s - now_s)
        return 0.0

    def _rate(self, now_s: float) -> float:
        """Return how many choices end in a second while the engine is busy: as many as run, each for its time."""
        service_s = self._service_s.value
        if service_s is None:
            # Nothing has ended yet; it takes at least as long as the oldest has run.
            oldest = next(iter(self._tickets), None)
            service_s = now_s - oldest.admitted_s if oldest else 0.0
        return max(1, min(self.running, self.limit.value)) / max(service_s, 1e-3)

    # -- decisions

    def _admit(self, now_s: float) -> Iterator[Decision]:
        while (ticket := self._next()) is not None:
            self.queue.remove(ticket)
            if now_s > ticket.latest_start_s:
                yield Decision(ticket, self._late(ticket, now_s))
            else:
                self._start(ticket, now_s)
                yield Decision(ticket)

    def _next(self) -> Ticket | None:
        """Return whose turn it is, if there is room for it. Nobody overtakes who is next, or a large request would wait
        for ever; only those who have nothing running pass those who have, for there is room kept for them."""
        heads = self.queue.heads()
        if not heads or self._fits(heads[0]):
            return heads[0] if heads else None
        first, *others = heads
        if not self._running_of[first.tenant]:
            return None
        return next((one for one in others if not self._running_of[one.tenant] and self._fits(one)), None)

    def _goes_in(self, ticket: Ticket) -> bool:
        """Whether a request that arrives now starts at once."""
        if self.queue or not self._has_place(ticket):
            return False
        # Waiting for the prompts before it is better for all, but not worth a refusal.
        return self._may_begin(ticket) or self._is_over(ticket)

    def _fits(self, ticket: Ticket) -> bool:
        return self._has_place(ticket) and self._may_begin(ticket)

    def _has_place(self, ticket: Ticket) -> bool:
        if self._alone is not None:
            return False
        if not self.running:
            return True
        limit = max(self._limit_for(ticket.tenant), ticket.promised_limit)
        return not self._engine_waits and self.running + ticket.choices <= limit

    def _may_begin(self, ticket: Ticket) -> bool:
        # A prompt beyond one step's worth would only queue inside the engine, in front of shorter ones.
        return not self._prefilling or self._prefilling + ticket.prompt_tokens <= self._prefill_room()

    def _prefill_room(self) -> float:
        """Return how many tokens of prompts may be computed together: what one step takes, and with a pace to keep, as
        many as are done in the time of a few tokens. Prompts that begin together hold everybody up, and end together,
        again and again."""
        room = math.inf if self._step_tokens is None else self._step_tokens
        if self._tpot_s is None or self._prefill_s.value is None:
            return room
        return min(room, _PREFILL * self._tpot_s / self._prefill_s.value)

    def _limit_for(self, tenant: str) -> int:
        """Whoever has nothing running need not wait for another tenant's answers to end: a little more fits."""
        limit = self.limit.value
        if self._running_of[tenant]:
            return limit
        return min(self.limit.most, limit + max(1, limit // _NEWCOMERS))

    def _start(self, ticket: Ticket, now_s: float) -> None:
        self.running += ticket.choices
        self._prefilling += ticket.prompt_tokens
        ticket.admitted_s, ticket.prefilling = now_s, self._prefilling
        self._tickets[ticket] = None
        if ticket.alone_s:
            self._alone = ticket
        self._running_of[ticket.tenant] += 1
        self.queue.charge(ticket.tenant, ticket.prompt_tokens, 0)
        self.limit.started(ticket.choices)

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
        return self._refusal(why, ticket, self._drain_s(choices, now_s), now_s)

    def _too_late(self, ticket: Ticket, now_s: float) -> ServerOverloaded | None:
        """Refuse what would miss the target for first tokens, as far as can be told."""
        if self._ttft_s is None:
            return None
        wait_s = self.expected_wait_s(ticket.tenant, ticket.choices, now_s)
        left_s = self._ttft_s - (now_s - ticket.arrived_s) - self._start_s.or_else(0.0)
        # What can start at once may, however long its own prompt takes.
        if wait_s == 0 or wait_s <= _CAUTION * left_s:
            return None
        why = (
            f"The server is busy: your request would wait {wait_s:.1f} s for its turn, more than its target of "
            f"{self._ttft_s:g} s to the first token allows."
        )
        return self._refusal(why, ticket, wait_s - _CAUTION * max(0.0, left_s), now_s)

    def _late(self, ticket: Ticket, now_s: float) -> ServerOverloaded:
        why = "The server is busier than it seemed: your turn did not come in time for the target to the first token."
        return self._refusal(why, ticket, self.retry_after_s(now_s), now_s)

    def _full(self, ticket: Ticket, now_s: float) -> ServerOverloaded:
        # Without numbers: they would tell one tenant of the others' load.
        return self._refusal("The server is busy and its queue is full.", ticket, self.retry_after_s(now_s), now_s)

    def _refusal(self, why: str, ticket: Ticket, after_s: float, now_s: float) -> ServerOverloaded:
        """Send away until there will be room, behind those who were sent away before: a crowd that is told the same
        time comes back as a crowd."""
        if self._service_s.value is not None:
            room_s = max(self._promised_s, now_s + after_s) + self._drain_s(ticket.choices, now_s)
            self._promised_s = min(room_s, now_s + MAX_RETRY_AFTER_S)
            after_s = room_s - now_s
        after_s = max(1.0, min(MAX_RETRY_AFTER_S, after_s))
        return ServerOverloaded(f"{why} Retry in {math.ceil(after_s)} s.", retry_after_s=after_s)

    def retry_after_s(self, now_s: float) -> float:
        """Return when what waits now will have had its turn."""
        return self._drain_s(self.queue.choices, now_s)

    def _drain_s(self, choices: int, now_s: float) -> float:
        """Return in what time this many choices are taken from the queue, at the present pace."""
        return RETRY_AFTER_S if self._service_s.value is None else choices / self._rate(now_s)


def _exceeds(waiting: int, more: int, most: int | None) -> bool:
    # One prompt may wait however long it is: the engine's context bounds it.
    return most is not None and waiting > 0 and waiting + more > most

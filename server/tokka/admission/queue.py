"""The queue, fair between tenants by the tokens they were served. Synchronous and pure.

It uses the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). Each tenant
has a counter of the tokens it was served, and the waiting tenant with the lowest counter is next. A tenant that comes
back starts at the lowest counter of the waiting tenants, or at its own if that is higher. So idling earns nothing, and
earlier service is not forgotten.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tokka.admission.ticket import Ticket

# Cost of a generated token, in prompt tokens: it takes its own step, while the tokens of a prompt share one. The paper
# uses the same ratio.
OUTPUT_COST = 2.0
# Maximum counters, since an issuer of tokens may bring any number of tenants. The ones unseen for longest are dropped.
_MAX_TENANTS = 10_000


@dataclass(slots=True)
class _Line:
    """The queued requests of one tenant, ordered by priority and then by arrival."""

    tickets: list[tuple[int, int, Ticket]] = field(default_factory=list)
    choices: int = 0
    tokens: int = 0


class FairQueue:
    """The queued requests of all tenants. `weights`: shares of a busy engine; 1 for a tenant not listed."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._lines: dict[str, _Line] = {}
        self._served: OrderedDict[str, float] = OrderedDict()
        self._count = 0
        self.choices = 0
        self.tokens = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Ticket]:
        for line in self._lines.values():
            for _, _, ticket in line.tickets:
                yield ticket

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def waiting_of(self, tenant: str) -> tuple[int, int]:
        """Return the number of this tenant's queued choices and prompt tokens."""
        line = self._lines.get(tenant)
        return (line.choices, line.tokens) if line else (0, 0)

    def put(self, ticket: Ticket) -> None:
        line = self._lines.get(ticket.tenant)
        if line is None:
            self._set_served(ticket.tenant, self._start_of(ticket.tenant))
            line = self._lines[ticket.tenant] = _Line()
        self._count += 1
        bisect.insort(line.tickets, (ticket.priority, self._count, ticket))
        line.choices += ticket.choices
        line.tokens += ticket.prompt_tokens
        self.choices += ticket.choices
        self.tokens += ticket.prompt_tokens

    def heads(self) -> list[Ticket]:
        """Return each tenant's first ticket, in the order of the tenants' turns."""
        names = sorted(self._lines, key=lambda name: self._served[name])
        return [self._lines[name].tickets[0][2] for name in names]

    def remove(self, ticket: Ticket) -> bool:
        """Remove a ticket and return whether it was queued."""
        line = self._lines.get(ticket.tenant)
        place = next((at for at, entry in enumerate(line.tickets) if entry[2] is ticket), None) if line else None
        if line is None or place is None:
            return False
        del line.tickets[place]
        line.choices -= ticket.choices
        line.tokens -= ticket.prompt_tokens
        self.choices -= ticket.choices
        self.tokens -= ticket.prompt_tokens
        if not line.tickets:
            del self._lines[ticket.tenant]
        return True

    def charge(self, tenant: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Add served tokens to a tenant's counter."""
        cost = (prompt_tokens + OUTPUT_COST * completion_tokens) / self.weight(tenant)
        served = self._served.get(tenant)
        # A tenant that is admitted without waiting comes back, too.
        self._set_served(tenant, (self._start_of(tenant) if served is None else served) + cost)

    def ahead_of(self, tenant: str, cost: float) -> int:
        """Return how many queued choices would run before a new one of this tenant.

        `cost`: the average charge of one choice. The tenant's own queued choices run before the new one, and the other
        tenants' choices until their counters have caught up.
        """
        own, _ = self.waiting_of(tenant)
        reach = self._start_of(tenant) + own * cost / self.weight(tenant)
        others = 0
        for name, line in self._lines.items():
            if name != tenant:
                turns = math.ceil(max(0.0, reach - self._served[name]) * self.weight(name) / cost)
                others += min(line.choices, turns)
        return own + others

    def most_greedy(self, tenant: str, choices: int) -> Ticket | None:
        """Return the last ticket of the tenant with most queued choices for its weight.

        None if that is this tenant itself, or if without the ticket it would have fewer queued choices for its weight
        than this tenant with so many more.
        """
        if not self._lines:
            return None
        name = max(self._lines, key=lambda one: self._lines[one].choices / self.weight(one))
        mine = (self.waiting_of(tenant)[0] + choices) / self.weight(tenant)
        last = self._lines[name].tickets[-1][2]
        theirs = (self._lines[name].choices - last.choices) / self.weight(name)
        return last if name != tenant and theirs >= mine else None

    def _start_of(self, tenant: str) -> float:
        """Return a tenant's counter, or the one with which it would begin to wait now."""
        served = self._served.get(tenant, 0.0)
        if tenant in self._lines or not self._lines:
            return served
        return max(served, min(self._served[name] for name in self._lines))

    def _set_served(self, tenant: str, served: float) -> None:
        self._served[tenant] = served
        self._served.move_to_end(tenant)
        if len(self._served) > _MAX_TENANTS:
            oldest = next((name for name in self._served if name not in self._lines), None)
            if oldest is not None:
                del self._served[oldest]

"""What the engine runs now, what more it can take, and when. Pure.

A request may start if four things hold. There is a place: with it among those who decode, a step is still short enough
for the promised pace. Its prompt and its expected answer fit into memory beside what the others will still generate.
The next step has room for its prompt. And hardly anybody who is on pace falls behind while its prompt is computed.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Sequence

from tokka.admission.departures import Departure, Departures
from tokka.admission.forecast import Forecast
from tokka.admission.lengths import AnswerLengths
from tokka.admission.slack import Slacks
from tokka.admission.targets import Targets
from tokka.admission.ticket import Ticket
from tokka.engine_facts import EngineStats, ModelInfo

# Lengths that an answer may have in the end, of those that are considered at once.
_DRAWS = 8
# Until lengths have been seen, an answer is taken to be as long as this share of those that are assumed.
_CAREFUL = 0.85
# Seconds of slack beyond which it makes no difference how much there is.
_PLENTY_S = 1.0
# Who is given nothing for so long does not read, and has no pace to lose. Plain answers come in lumps of 0.25 s.
_STALLED_S = 0.5
_STALLED_TOKENS = 10
# Of places and memory, what is kept for tenants that have nothing running, while others than those who run were seen
# lately; and how many more places there are for them.
_FOR_NEWCOMERS = 1 / 16
_LATELY_S = 600.0
_MOST_TENANTS = 1000
# Of memory, what may be promised: lengths are expected, not known.
_KV_MARGIN = 0.95
# Of the time to the first token, how long a short answer may wait for a long prompt before it to be over.
_PATIENCE = 0.5
# Of a chunk, what a prompt is taken to need at least until its first token has come.
_LAST_PART = 0.1
# Of the pace's target, what is steered to; and how many may fall behind when a request starts.
_LOWEST_GOAL, _HIGHEST_GOAL = 0.8, 0.97
_FIRST_RISK, _MOST_RISK = 0.25, 0.5
# Of a step, what a prompt costs those who run beside its own time: it waits for the present one to end.
_STEP_PART = 0.5
# What an answer that lost its pace takes from both, and how many that kept it make up for that: one in so many is lost.
_GOAL_STEP, _RISK_STEP = 0.01, 0.02
_KEPT_PER_LOST = 60


class Batch:
    def __init__(self) -> None:
        self.lengths = AnswerLengths()
        self.forecast = Forecast()
        self.choices = 0
        self._patience_s = self._tpot_s = math.inf
        self._goal, self._risk = _HIGHEST_GOAL, _FIRST_RISK
        # In the order of their start, and those of them without a first token.
        self._tickets: dict[Ticket, None] = {}
        self._prefilling: dict[Ticket, None] = {}
        self._of_tenant: Counter[str] = Counter()
        # When each tenant's last request ended, the latest last.
        self._seen_s: OrderedDict[str, float] = OrderedDict()
        self._is_shared = False
        self._slacks = Slacks()
        self._departures: Departures | None = None
        # Tokens of memory that those who run hold and will take.
        self._kv_promised = 0.0
        self._kv_of: dict[Ticket, float] = {}
        self._limit: int | None = None
        self._engine_waits = self._waited_before = False
        # What has the engine to itself for now.
        self._alone: Ticket | None = None

    # -- events

    def resize(self, model: ModelInfo, targets: Targets) -> None:
        """Take over what the engine can run at once, what its steps cost, and what is promised."""
        self.forecast.describe(model)
        self._patience_s = math.inf if targets.ttft_s is None else _PATIENCE * targets.ttft_s
        self._tpot_s = math.inf if targets.tpot_s is None else targets.tpot_s
        self._limit = None

    def start(self, ticket: Ticket, now_s: float) -> None:
        ticket.started_s = now_s
        ticket.ready_s = now_s + self.own_prompt_s(ticket)
        spare_s, behind_s = self._spare_s(self.choices + ticket.choices), self._ahead_after(ticket, now_s)
        self._slacks.spend(self.forecast.prompt_s(ticket.uncached_tokens))
        if math.isfinite(spare_s):
            self._slacks.add(
                ticket,
                [(n - 1) * spare_s - behind_s - _STEP_PART * self.token_s() for n in self._draws(ticket) if n > 1],
            )
        self.choices += ticket.choices
        self._tickets[ticket] = self._prefilling[ticket] = None
        if ticket.alone_s:
            self._alone = ticket
        self._of_tenant[ticket.tenant] += 1
        self._kv_of[ticket] = self._kv_need(ticket)
        self._kv_promised += self._kv_of[ticket]

    def begin(self, ticket: Ticket) -> None:
        """Note a running ticket's first token."""
        self._prefilling.pop(ticket, None)

    def end(self, ticket: Ticket, now_s: float) -> None:
        self.choices -= ticket.choices
        del self._tickets[ticket]
        if ticket is self._alone:
            self._alone = None
        self._prefilling.pop(ticket, None)
        self._of_tenant[ticket.tenant] -= 1
        if not self._of_tenant[ticket.tenant]:
            del self._of_tenant[ticket.tenant]
        self._seen_s[ticket.tenant] = now_s
        self._seen_s.move_to_end(ticket.tenant)
        self._slacks.remove(ticket)
        self._kv_promised -= self._kv_of.pop(ticket)

    def observe(self, stats: EngineStats, now_s: float) -> None:
        """Take what the engine says, and work out anew what follows from it."""
        forecast, tickets = self.forecast, self._tickets
        # What was started a moment ago waits for the next step; what waits for longer has found no memory.
        self._engine_waits = self._waited_before and stats.waiting > 0
        self._waited_before = stats.waiting > 0
        self._limit = self._departures = None
        if self._alone is not None and now_s - self._alone.started_s >= self._alone.alone_s:
            self._alone = None
        while self._seen_s and (
            next(iter(self._seen_s.values())) < now_s - _LATELY_S or len(self._seen_s) > _MOST_TENANTS
        ):
            self._seen_s.popitem(last=False)
        self._is_shared = len(self._seen_s.keys() | self._of_tenant.keys()) > 1
        context = sum([one.prompt_tokens + one.tokens for one in tickets]) / self.choices if tickets else 0.0
        forecast.learn(stats.costs, context)
        if math.isfinite(self._tpot_s):
            self._renew_slacks(now_s)
        if kv_tokens := forecast.model.kv_tokens:
            to_come = sum(self._kv_to_come(ticket, now_s) for ticket in tickets)
            self._kv_promised = stats.kv_cache_usage * kv_tokens + to_come

    def learn_pace(self, *, kept: bool) -> None:
        """Note whether an answer that has ended got its tokens at the promised pace.

        What is lost is first made good by more care for single answers, and if that is not enough by a smaller batch.
        """
        if kept and self._goal < _HIGHEST_GOAL:
            self._goal += _GOAL_STEP / _KEPT_PER_LOST
        elif kept:
            self._risk = min(_MOST_RISK, self._risk + _RISK_STEP / _KEPT_PER_LOST)
        elif self._risk > 0:
            self._risk = max(0.0, self._risk - _RISK_STEP)
        else:
            self._goal = max(_LOWEST_GOAL, self._goal - _GOAL_STEP)

    # -- what there is room for

    @property
    def is_known(self) -> bool:
        """Whether anything is known of what steps cost."""
        return self.forecast.costs is not None

    def token_s(self) -> float:
        """Return how long each of those who run waits for its next token, while no prompt is computed."""
        return self.forecast.token_s(self.choices)

    def runs_for(self, tenant: str) -> bool:
        return tenant in self._of_tenant

    @property
    def limit(self) -> int:
        """The most choices that keep the promised pace together."""
        if self._limit is None:
            self._limit = self.forecast.most_choices(self._goal_s)
        return self._limit

    def takes(self, ticket: Ticket, now_s: float) -> bool:
        """Tell whether this ticket may start now."""
        if not self.choices or self._alone is not None:
            return self._alone is None
        prompt_s = self.forecast.prompt_s(ticket.uncached_tokens)
        return (
            self.has_place(ticket)
            and self._slacks.broken_by(prompt_s) <= _DRAWS * self._risk
            and (not self._prefilling or self._goes_beside_prompts(ticket, now_s))
        )

    def has_place(self, ticket: Ticket) -> bool:
        """Tell whether there is a place and memory for it."""
        return (
            not (self._engine_waits and self.runs_for(ticket.tenant))
            and self.choices + ticket.choices <= self._places_for(ticket.tenant)
            and self._kv_promised + self._kv_need(ticket) <= self._kv_for(ticket.tenant)
        )

    def wait_s(self, ticket: Ticket, choices: int, tokens: float, now_s: float) -> float:
        """Return how long a ticket waits that comes behind so many choices with so many tokens of prompts."""
        return max(
            self._prompts_wait_s(tokens, now_s),
            self._place_wait_s(ticket, choices, now_s),
            self._kv_wait_s(ticket, choices, tokens, now_s),
        )

    def own_prompt_s(self, ticket: Ticket) -> float:
        """Return how long its own prompt takes once it has started."""
        return self.forecast.own_prompt_s(ticket.uncached_tokens, self.choices)

    def cost_s(self, ticket: Ticket) -> float:
        """Return how long a full engine works for a ticket, others running beside it."""
        place_s = ticket.choices * self._expected(ticket) * self.forecast.token_s(self.limit) / self.limit
        share = self.forecast.prompt_share(self.choices, self._goal_s)
        return max(place_s, self.forecast.prompt_s(ticket.uncached_tokens) / share)

    # -- pace

    @property
    def _goal_s(self) -> float:
        return self._goal * self._tpot_s

    def _spare_s(self, choices: int) -> float:
        """Return what each token leaves to those who decode."""
        return self._goal_s - self.forecast.token_s(choices)

    def _draws(self, ticket: Ticket) -> Sequence[int]:
        """Return lengths that one choice of it may have in the end, each as likely as the others."""
        draws = ticket.draws
        if draws is None and ticket.is_exact:
            draws = ticket.draws = [ticket.most_tokens] * _DRAWS
        elif draws is None or draws[_DRAWS // 2] <= ticket.tokens // ticket.choices < ticket.most_tokens:
            at = ticket.quantile / _DRAWS
            shares = [at + place / _DRAWS for place in range(_DRAWS)]
            draws = ticket.draws = self.lengths.draw(ticket.tenant, ticket.most_tokens, ticket.given, shares)
            if not self.lengths.are_known(ticket.tenant, ticket.most_tokens):
                # Answers of one service are alike: what is assumed is wrong for all of them in the same direction.
                ticket.quantile = max(ticket.quantile, _CAREFUL)
        return draws

    def _expected(self, ticket: Ticket) -> int:
        """Return one of these lengths, another for each ticket: together they are as long as answers are."""
        draws = self._draws(ticket)
        return max(draws[int(ticket.quantile * _DRAWS)], ticket.given + 1)

    def _renew_slacks(self, now_s: float) -> None:
        slacks: dict[Ticket, list[float]] = {}
        token_s, goal_s, behind_s = self.forecast.token_s(self.choices), self._goal_s, 0.0
        spare_s = goal_s - token_s
        for ticket in reversed(self._prefilling):
            slacks[ticket] = [(n - 1) * spare_s - behind_s - _STEP_PART * token_s for n in self._draws(ticket) if n > 1]
            behind_s += self.forecast.prompt_s(self._left(ticket, now_s))
        # Part of the prompts that are computed now is done: nobody has had a token for that time.
        begun_s = min((one.started_s for one in self._prefilling), default=now_s)
        stalled_since_s = now_s - max(_STALLED_S, _STALLED_TOKENS * token_s)
        middle = _DRAWS // 2
        for ticket in self._tickets:
            first_s, last_s = ticket.first_token_s, ticket.last_token_s
            if first_s is None or last_s < stalled_since_s:
                continue
            given = ticket.tokens // ticket.choices
            # What it would have left if it ended now; each further token adds to it.
            now_left_s = first_s - last_s + goal_s * (given - 1) - behind_s - max(0.0, now_s - max(last_s, begun_s))
            if now_left_s < _PLENTY_S:
                known = ticket.draws
                draws = self._draws(ticket) if known is None or known[middle] <= given else known
                slacks[ticket] = [now_left_s + (n - given) * spare_s - _STEP_PART * token_s for n in draws if n > given]
        self._slacks.renew(slacks)

    # -- prompts

    def _left(self, ticket: Ticket, now_s: float) -> float:
        """Return the tokens of a prompt that are still to be computed, by the time it has had."""
        tokens, whole_s = ticket.uncached_tokens, ticket.ready_s - ticket.started_s
        share = (ticket.ready_s - now_s) / whole_s if whole_s > 0 else 0.0
        # Its first token has not come: the last part of it is still worked on.
        return max(_LAST_PART * min(tokens, self.forecast.chunk), tokens * min(1.0, share))

    def _goes_beside_prompts(self, ticket: Ticket, now_s: float) -> bool:
        """Tell whether the next step has room for it beside the prompts that are computed already: one long prompt at
        a time, so that short ones always find room."""
        step_tokens, chunk, tokens = self.forecast.model.step_tokens, self.forecast.chunk, ticket.uncached_tokens
        if step_tokens is not None:
            lefts = [self._left(one, now_s) for one in self._prefilling]
            if tokens > chunk and max(lefts) > chunk:
                return False
            if sum(min(left, chunk) for left in lefts) + min(tokens, chunk) > step_tokens:
                return False
        return self._keeps_pace_itself(ticket, now_s)

    def _keeps_pace_itself(self, ticket: Ticket, now_s: float) -> bool:
        """Tell whether the long prompts before it leave a short answer its pace, unless it has waited for that."""
        behind_s = self._ahead_after(ticket, now_s)
        further = self._expected(ticket) - 1
        if not behind_s or not further or now_s - ticket.arrived_s >= self._patience_s:
            return True
        return further * self._spare_s(self.choices + ticket.choices) >= behind_s

    def _ahead_after(self, ticket: Ticket, now_s: float) -> float:
        """Return how long the prompts before this one go on after its own is computed."""
        if not self._prefilling or math.isinf(self.forecast.chunk):
            return 0.0
        passed = math.ceil(ticket.uncached_tokens / self.forecast.chunk) * self.forecast.chunk
        left = sum(max(0.0, self._left(one, now_s) - passed) for one in self._prefilling)
        return self.forecast.prompt_s(left)

    def _prompts_wait_s(self, tokens: float, now_s: float) -> float:
        under_way = sum(self._left(one, now_s) for one in self._prefilling)
        work_s = self.forecast.prompt_s(tokens + under_way)
        # As fast as it goes while everybody can bear it, and then as the pace allows.
        at_once_s = min(work_s, self._slacks.spare_s(_DRAWS))
        later_s = work_s - at_once_s
        share = self.forecast.prompt_share(self.choices, self._goal_s) if later_s else 1.0
        return at_once_s / self.forecast.full_share(self.choices) + later_s / share

    # -- places and memory

    def _kept_free(self, tenant: str) -> float:
        """Whoever has nothing running need not wait until another tenant's answers have ended."""
        return _FOR_NEWCOMERS if self.runs_for(tenant) and self._is_shared else 0.0

    def _places_for(self, tenant: str) -> int:
        if self.runs_for(tenant):
            return self.limit - math.ceil(self.limit * self._kept_free(tenant))
        if math.isinf(self._tpot_s):
            return self.limit
        # What is more than the engine runs is next inside the engine.
        return self.limit + math.ceil(self.limit * _FOR_NEWCOMERS)

    def _kv_for(self, tenant: str) -> float:
        kv_tokens = self.forecast.model.kv_tokens
        if kv_tokens is None:
            return math.inf
        return kv_tokens * (_KV_MARGIN - self._kept_free(tenant) if self.runs_for(tenant) else 1.0)

    def _kv_need(self, ticket: Ticket) -> float:
        return ticket.uncached_tokens + ticket.choices * self._expected(ticket)

    def _kv_to_come(self, ticket: Ticket, now_s: float) -> float:
        """Return the tokens of memory that a running ticket will still take."""
        prompt = self._left(ticket, now_s) if ticket.first_token_s is None else 0.0
        return prompt + ticket.choices * (self._expected(ticket) - ticket.given)

    def _place_wait_s(self, ticket: Ticket, choices: int, now_s: float) -> float:
        places = self._places_for(ticket.tenant)
        missing = self.choices + choices + ticket.choices - places
        return self._ends(now_s).until_choices(missing, places, now_s) if missing > 0 else 0.0

    def _kv_wait_s(self, ticket: Ticket, choices: int, tokens: float, now_s: float) -> float:
        room = self._kv_for(ticket.tenant)
        if math.isinf(room):
            return 0.0
        before = tokens + choices * self._expected(ticket)
        missing = self._kv_promised + before + self._kv_need(ticket) - room
        return self._ends(now_s).until_kv_tokens(missing, room, now_s) if missing > 0 else 0.0

    def _ends(self, now_s: float) -> Departures:
        if self._departures is None:
            token_s = self.forecast.token_s(self.choices)
            if self._prefilling and math.isfinite(self._goal_s):
                # Prompts go on beside them, as far as the pace allows.
                token_s = max(token_s, self._goal_s)
            self._departures = Departures(self._departure(ticket, token_s, now_s) for ticket in self._tickets)
        return self._departures

    def _departure(self, ticket: Ticket, token_s: float, now_s: float) -> Departure:
        length = self._expected(ticket)
        begins_s = max(now_s, ticket.ready_s) if ticket.first_token_s is None else now_s
        ends_s = begins_s + (length - ticket.given) * token_s
        return Departure(ends_s, length * token_s, ticket.choices, ticket.prompt_tokens + ticket.choices * length)

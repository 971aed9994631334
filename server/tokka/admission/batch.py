"""The running requests, and whether and when the engine can take another one. Pure.

A request may start at once if nothing runs. Otherwise four conditions must hold (design 5 has the exceptions):

1. A place is free: with its choices decoding, a step is still short enough for the TPOT target.
2. Its prompt and expected answer fit the KV cache, beside the tokens that the other requests will still generate.
3. The next step has room for its prompt.
4. While its prompt is computed, hardly any answer that meets the TPOT target falls behind.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Sequence

from tokka.admission.departures import Departure, Departures
from tokka.admission.forecast import Forecast
from tokka.admission.lengths import AnswerLengths
from tokka.admission.loop_room import LoopRoom, LoopTime
from tokka.admission.slack import Slacks
from tokka.admission.targets import Targets
from tokka.admission.ticket import Ticket
from tokka.engine_facts import EngineStats, ModelInfo

# Number of possible final lengths considered for each answer.
_DRAWS = 8
# Minimum quantile of the assumed lengths that an answer gets while no lengths have been observed.
_CAREFUL = 0.85
# Seconds of slack above which the exact amount makes no difference.
_PLENTY_S = 1.0
# Seconds and token times without a token after which a client counts as not reading: it has no token rate to lose.
# Plain answers get their tokens in lumps of 0.25 s.
_STALLED_S = 0.5
_STALLED_TOKENS = 10
# Share of places and memory kept free for tenants with nothing running, if several tenants were seen lately. These
# tenants also get this share of additional places.
_FOR_NEWCOMERS = 1 / 16
# Seconds after its last request for which a tenant counts as seen lately, and the maximum number of these tenants.
_LATELY_S = 600.0
_MOST_TENANTS = 1000
# Share of the KV cache that may be promised to tenants with something running: lengths are expected, not known.
_KV_MARGIN = 0.95
# Share of the TTFT target that a short answer may wait for an earlier long prompt to be computed.
_PATIENCE = 0.5
# Share of a chunk that a prompt is assumed to still need, at least, until its first token arrives.
_LAST_PART = 0.1
# Bounds of the goal: the share of the TPOT target that admission steers to.
_LOWEST_GOAL, _HIGHEST_GOAL = 0.8, 0.97
# First and maximum risk: the expected number of answers that fall behind when a request starts.
_FIRST_RISK, _MOST_RISK = 0.25, 0.5
# Share of a step that a prompt costs running choices besides its own time: it waits for the current step to end.
_STEP_PART = 0.5
# Reduction of the goal or the risk by an answer that misses the TPOT target. _KEPT_PER_LOST answers that meet it undo
# one reduction, so about one in that many misses it.
_GOAL_STEP, _RISK_STEP = 0.01, 0.02
_KEPT_PER_LOST = 60


class Batch:
    """The running requests, and the engine's room for more."""

    def __init__(self) -> None:
        self.lengths = AnswerLengths()
        self.forecast = Forecast()
        self.loop = LoopRoom()
        self.choices = 0
        self._ttft_s = self._tpot_s = math.inf
        self._goal, self._risk = _HIGHEST_GOAL, _FIRST_RISK
        # Running tickets in the order of their start, and the ones without a first token.
        self._tickets: dict[Ticket, None] = {}
        self._prefilling: dict[Ticket, None] = {}
        self._of_tenant: Counter[str] = Counter()
        # Time at which each tenant's last request ended, the latest last.
        self._seen_s: OrderedDict[str, float] = OrderedDict()
        self._is_shared = False
        self._slacks = Slacks()
        self._departures: Departures | None = None
        # Tokens of KV cache that running requests hold and will take.
        self._kv_promised = 0.0
        self._kv_of: dict[Ticket, float] = {}
        self._limit: int | None = None
        self._engine_waits = self._waited_before = False
        # The ticket that has the engine to itself for now.
        self._alone: Ticket | None = None

    # -- events

    def resize(self, model: ModelInfo, targets: Targets) -> None:
        """Apply the engine's capacity and step costs, and the targets."""
        self.forecast.describe(model)
        self._ttft_s = math.inf if targets.ttft_s is None else targets.ttft_s
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
        """Record a running ticket's first token."""
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

    def observe(self, stats: EngineStats, now_s: float, loop: LoopTime) -> None:
        """Update all estimates from the engine's statistics and the event loop's time."""
        forecast, tickets = self.forecast, self._tickets
        # A request started a moment ago waits for the next step. One that waits for longer has found no memory.
        self._engine_waits = self._waited_before and stats.waiting > 0
        self._waited_before = stats.waiting > 0
        # design 8.8
        self.loop.observe(loop, self.choices, forecast.model.max_running, self._ttft_s)
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
        """Adapt risk and goal to a finished answer. `kept`: it met the TPOT target.

        Misses first lower the risk, which protects single answers. At zero risk they lower the goal, which makes the
        batch smaller.
        """
        # design 8.1 to 8.4
        if kept and self._goal < _HIGHEST_GOAL:
            self._goal += _GOAL_STEP / _KEPT_PER_LOST
        elif kept:
            self._risk = min(_MOST_RISK, self._risk + _RISK_STEP / _KEPT_PER_LOST)
        elif self._risk > 0:
            self._risk = max(0.0, self._risk - _RISK_STEP)
        else:
            self._goal = max(_LOWEST_GOAL, self._goal - _GOAL_STEP)

    # -- room

    @property
    def is_known(self) -> bool:
        """Whether the costs of steps are known."""
        return self.forecast.costs is not None

    def token_s(self) -> float:
        """Return the seconds that a running choice waits for its next token while no prompt is computed."""
        return self.forecast.token_s(self.choices)

    def runs_for(self, tenant: str) -> bool:
        return tenant in self._of_tenant

    @property
    def limit(self) -> int:
        """Maximum choices that can run together within the targets."""
        if self._limit is None:
            self._limit = int(min(self.forecast.most_choices(self._goal_s), self.loop.most_choices))
        return self._limit

    def takes(self, ticket: Ticket, now_s: float) -> bool:
        """Return whether this ticket may start now."""
        # design 5.1, 5.2
        if not self.choices or self._alone is not None:
            return self._alone is None
        prompt_s = self.forecast.prompt_s(ticket.uncached_tokens)
        return (
            self.has_place(ticket)
            # design 5.6
            and self._slacks.broken_by(prompt_s) <= _DRAWS * self._risk
            and (not self._prefilling or self._goes_beside_prompts(ticket, now_s))
        )

    def has_place(self, ticket: Ticket) -> bool:
        """Return whether a place and memory are free for this ticket."""
        return (
            self._alone is None
            # design 5.3
            and not (self._engine_waits and self.runs_for(ticket.tenant))
            # design 5.4
            and self.choices + ticket.choices <= self._places_for(ticket.tenant)
            # design 5.5
            and self._kv_promised + self._kv_need(ticket) <= self._kv_for(ticket.tenant)
        )

    def wait_s(self, ticket: Ticket, choices: int, tokens: float, now_s: float) -> float:
        """Return the seconds that a ticket waits behind queued `choices` with prompts of `tokens` in total."""
        return max(
            self._prompts_wait_s(tokens, now_s),
            self._place_wait_s(ticket, choices, now_s),
            self._kv_wait_s(ticket, choices, tokens, now_s),
        )

    def own_prompt_s(self, ticket: Ticket) -> float:
        """Return the seconds that the ticket's own prompt takes once it has started."""
        return self.forecast.own_prompt_s(ticket.uncached_tokens, self.choices)

    def cost_s(self, ticket: Ticket) -> float:
        """Return the seconds that a full engine works on a ticket, with others running beside it."""
        place_s = ticket.choices * self._expected(ticket) * self.forecast.token_s(self.limit) / self.limit
        share = self.forecast.prompt_share(self.choices, self._goal_s)
        return max(place_s, self.forecast.prompt_s(ticket.uncached_tokens) / share)

    # -- token rate

    @property
    def _goal_s(self) -> float:
        return self._goal * self._tpot_s

    def _spare_s(self, choices: int) -> float:
        """Return the seconds that each token leaves until the goal, if so many choices decode."""
        return self._goal_s - self.forecast.token_s(choices)

    def _draws(self, ticket: Ticket) -> Sequence[int]:
        """Return equally likely final lengths of one of the ticket's choices."""
        draws = ticket.draws
        if draws is None and ticket.is_exact:
            draws = ticket.draws = [ticket.most_tokens] * _DRAWS
        elif draws is None or draws[_DRAWS // 2] <= ticket.tokens // ticket.choices < ticket.most_tokens:
            at = ticket.quantile / _DRAWS
            shares = [at + place / _DRAWS for place in range(_DRAWS)]
            draws = ticket.draws = self.lengths.draw(ticket.tenant, ticket.most_tokens, ticket.given, shares)
            if not self.lengths.are_known(ticket.tenant, ticket.most_tokens):
                # Answers of one service are alike, so an assumption is wrong for all of them in the same direction.
                ticket.quantile = max(ticket.quantile, _CAREFUL)
        return draws

    def _expected(self, ticket: Ticket) -> int:
        """Return one of these lengths, by the ticket's quantile: over all tickets they follow the distribution."""
        draws = self._draws(ticket)
        return max(draws[int(ticket.quantile * _DRAWS)], ticket.given + 1)

    def _renew_slacks(self, now_s: float) -> None:
        slacks: dict[Ticket, list[float]] = {}
        token_s, goal_s, behind_s = self.forecast.token_s(self.choices), self._goal_s, 0.0
        spare_s = goal_s - token_s
        for ticket in reversed(self._prefilling):
            slacks[ticket] = [(n - 1) * spare_s - behind_s - _STEP_PART * token_s for n in self._draws(ticket) if n > 1]
            behind_s += self.forecast.prompt_s(self._left(ticket, now_s))
        # Part of the prompts in progress is computed already, and running choices got no token in that time.
        begun_s = min((one.started_s for one in self._prefilling), default=now_s)
        stalled_since_s = now_s - max(_STALLED_S, _STALLED_TOKENS * token_s)
        middle = _DRAWS // 2
        for ticket in self._tickets:
            first_s, last_s = ticket.first_token_s, ticket.last_token_s
            if first_s is None or last_s < stalled_since_s:
                continue
            given = ticket.tokens // ticket.choices
            # The slack if the answer ended now. Each further token adds to it.
            now_left_s = first_s - last_s + goal_s * (given - 1) - behind_s - max(0.0, now_s - max(last_s, begun_s))
            if now_left_s < _PLENTY_S:
                known = ticket.draws
                draws = self._draws(ticket) if known is None or known[middle] <= given else known
                slacks[ticket] = [now_left_s + (n - given) * spare_s - _STEP_PART * token_s for n in draws if n > given]
        self._slacks.renew(slacks)

    # -- prompts

    def _left(self, ticket: Ticket, now_s: float) -> float:
        """Estimate the tokens of a prompt that are still to be computed, from the time since its start."""
        tokens, whole_s = ticket.uncached_tokens, ticket.ready_s - ticket.started_s
        share = (ticket.ready_s - now_s) / whole_s if whole_s > 0 else 0.0
        # Without a first token, the last part of the prompt is still being computed.
        return max(_LAST_PART * min(tokens, self.forecast.chunk), tokens * min(1.0, share))

    def _goes_beside_prompts(self, ticket: Ticket, now_s: float) -> bool:
        """Return whether the next step has room for the ticket beside the prompts in progress.

        Only one long prompt is computed at a time, so that short ones find room.
        """
        step_tokens, chunk, tokens = self.forecast.model.step_tokens, self.forecast.chunk, ticket.uncached_tokens
        if step_tokens is not None:
            lefts = [self._left(one, now_s) for one in self._prefilling]
            # design 5.7
            if tokens > chunk and max(lefts) > chunk:
                return False
            # design 5.8
            if sum(min(left, chunk) for left in lefts) + min(tokens, chunk) > step_tokens:
                return False
        return self._keeps_pace_itself(ticket, now_s)

    def _keeps_pace_itself(self, ticket: Ticket, now_s: float) -> bool:
        """Return whether a short answer meets the TPOT target despite long prompts before it, or has waited enough."""
        behind_s = self._ahead_after(ticket, now_s)
        further = self._expected(ticket) - 1
        # design 5.9
        if not behind_s or not further or now_s - ticket.arrived_s >= _PATIENCE * self._ttft_s:
            return True
        return further * self._spare_s(self.choices + ticket.choices) >= behind_s

    def _ahead_after(self, ticket: Ticket, now_s: float) -> float:
        """Return the seconds for which earlier prompts continue after the ticket's own is computed."""
        if not self._prefilling or math.isinf(self.forecast.chunk):
            return 0.0
        passed = math.ceil(ticket.uncached_tokens / self.forecast.chunk) * self.forecast.chunk
        left = sum(max(0.0, self._left(one, now_s) - passed) for one in self._prefilling)
        return self.forecast.prompt_s(left)

    def _prompts_wait_s(self, tokens: float, now_s: float) -> float:
        under_way = sum(self._left(one, now_s) for one in self._prefilling)
        work_s = self.forecast.prompt_s(tokens + under_way)
        # At full speed while the running choices have slack, then at the speed that the TPOT goal allows.
        at_once_s = min(work_s, self._slacks.spare_s(_DRAWS))
        later_s = work_s - at_once_s
        share = self.forecast.prompt_share(self.choices, self._goal_s) if later_s else 1.0
        return at_once_s / self.forecast.full_share(self.choices) + later_s / share

    # -- places and memory

    def _kept_free(self, tenant: str) -> float:
        """Return the share of places and memory that this tenant leaves free.

        So a tenant with nothing running need not wait until another tenant's answers have ended.
        """
        return _FOR_NEWCOMERS if self.runs_for(tenant) and self._is_shared else 0.0

    def _places_for(self, tenant: str) -> int:
        if self.runs_for(tenant):
            return self.limit - math.ceil(self.limit * self._kept_free(tenant))
        if math.isinf(self._tpot_s):
            return self.limit
        # Choices beyond the engine's own maximum come next inside the engine.
        return self.limit + math.ceil(self.limit * _FOR_NEWCOMERS)

    def _kv_for(self, tenant: str) -> float:
        kv_tokens = self.forecast.model.kv_tokens
        if kv_tokens is None:
            return math.inf
        return kv_tokens * (_KV_MARGIN - self._kept_free(tenant) if self.runs_for(tenant) else 1.0)

    def _kv_need(self, ticket: Ticket) -> float:
        return ticket.uncached_tokens + ticket.choices * self._expected(ticket)

    def _kv_to_come(self, ticket: Ticket, now_s: float) -> float:
        """Return the tokens of KV cache that a running ticket will still take."""
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
                # Prompts are computed beside the choices, as far as the TPOT goal allows.
                token_s = max(token_s, self._goal_s)
            self._departures = Departures(self._departure(ticket, token_s, now_s) for ticket in self._tickets)
        return self._departures

    def _departure(self, ticket: Ticket, token_s: float, now_s: float) -> Departure:
        length = self._expected(ticket)
        begins_s = max(now_s, ticket.ready_s) if ticket.first_token_s is None else now_s
        ends_s = begins_s + (length - ticket.given) * token_s
        return Departure(ends_s, length * token_s, ticket.choices, ticket.prompt_tokens + ticket.choices * length)

"""Single decisions of the policy: which requests start, which leave the queue for others, and texts of refusals."""

from __future__ import annotations

import re

import pytest

from tokka.admission.policy import AdmissionPolicy, Bounds, Decision
from tokka.admission.targets import Targets
from tokka.admission.ticket import Ticket
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import ServerOverloaded
from tokka.step_costs import StepCosts

# A token takes 0.1 s with any batch. A prompt of 1,000 tokens adds another 0.1 s.
COSTS = StepCosts(fixed_s=0.1, per_prompt_token_s=0.0001)
GPU = StepCosts(fixed_s=0.012, per_choice_s=0.0001, per_prompt_token_s=0.00002)
IDLE, WAITING = EngineStats(), EngineStats(waiting=1)


def ticket(tenant: str = "a", choices: int = 1, tokens: int = 10, at_s: float = 0.0, most: int = 10) -> Ticket:
    return Ticket(tenant, choices, at_s, tokens, most_tokens=most, is_exact=True)


def policy(
    most: int = 2,
    bounds: Bounds | None = None,
    targets: Targets | None = None,
    step_tokens: int | None = None,
    weights: dict[str, float] | None = None,
    costs: StepCosts | None = COSTS,
    kv_tokens: int | None = None,
) -> AdmissionPolicy:
    made = AdmissionPolicy(bounds or Bounds(8), targets or Targets(), weights)
    info = ModelInfo(4096, 256, "test", "", False, most, step_tokens, kv_tokens, costs=costs)
    made.resize(info, 0.0)
    return made


def runs(decisions: list[Decision]) -> list[Ticket]:
    return [decision.ticket for decision in decisions if decision.refusal is None]


def refused(decisions: list[Decision]) -> list[Ticket]:
    return [decision.ticket for decision in decisions if decision.refusal is not None]


def produce(made: AdmissionPolicy, one: Ticket, tokens: int, now_s: float) -> list[Decision]:
    """Give tokens to a running request, as a slot does."""
    one.tokens += tokens
    one.last_token_s = now_s
    made.charge(one, tokens)
    if one.first_token_s is not None:
        return []
    one.first_token_s = now_s
    return made.begin(one, now_s)


def serve(made: AdmissionPolicy, one: Ticket, from_s: float, to_s: float, tokens: int = 10) -> list[Decision]:
    """Give a running request its first token at `from_s`, and its other tokens and its end at `to_s`."""
    produce(made, one, 1, from_s)
    produce(made, one, tokens - 1, to_s)
    return made.end(one, to_s, is_whole=True)


def test_ended_request_admits_a_queued_request() -> None:
    made = policy(most=1)
    first, second = ticket(), ticket()
    assert runs(made.arrive(first, 0.0)) == [first]
    assert made.arrive(second, 0.0) == []
    assert runs(serve(made, first, 0.1, 1.0)) == [second]
    assert (second.started_s, made.batch.choices, made.queue.choices) == (1.0, 1, 0)


def test_a_tenant_with_more_waiting_makes_room_for_one_with_less() -> None:
    made = policy(most=1, bounds=Bounds(3))
    made.arrive(ticket("crowd"), 0.0)
    waiting = [ticket("crowd") for _ in range(3)]
    for one in waiting:
        assert made.arrive(one, 0.0) == []
    assert refused(made.arrive(ticket("crowd"), 0.0)) != []
    newcomer = ticket("modest")
    assert refused(made.arrive(newcomer, 0.0)) == [waiting[-1]]
    assert [one.tenant for one in made.queue].count("modest") == 1


def test_the_bound_of_one_tenant_is_its_own_affair() -> None:
    made = policy(most=1, bounds=Bounds(10, choices_per_tenant=1, tokens_per_tenant=100))
    made.arrive(ticket("crowd"), 0.0)
    assert made.arrive(ticket("crowd"), 0.0) == []
    (decision,) = made.arrive(ticket("crowd"), 0.0)
    assert decision.refusal is not None
    assert "1 of your choices are queued already; the maximum is 1" in decision.refusal.message
    assert made.arrive(ticket("other"), 0.0) == []


@pytest.mark.parametrize("bounds", [Bounds(10, tokens=100), Bounds(10, tokens_per_tenant=100)])
def test_prompts_that_wait_are_bounded_but_one_may_be_of_any_length(bounds: Bounds) -> None:
    made = policy(most=1, bounds=bounds)
    made.arrive(ticket(), 0.0)
    assert made.arrive(ticket(tokens=5000), 0.0) == []
    assert refused(made.arrive(ticket(tokens=1), 0.0)) != []


def test_prompt_waits_for_earlier_prompts_when_the_step_is_full() -> None:
    made = policy(most=8, step_tokens=100)
    first, second = ticket(tokens=80), ticket(tokens=60)
    assert runs(made.arrive(first, 0.0)) == [first]
    assert made.arrive(second, 0.0) == []
    assert runs(produce(made, first, 1, 0.5)) == [second]


def test_prompt_longer_than_a_step_runs_when_it_is_the_only_one() -> None:
    made = policy(most=8, step_tokens=100)
    first, long = ticket(tokens=80), ticket(tokens=4000)
    made.arrive(first, 0.0)
    assert made.arrive(long, 0.0) == []
    assert runs(produce(made, first, 1, 0.5)) == [long]


def test_a_prompt_that_may_not_wait_begins_beside_others() -> None:
    made = policy(most=8, step_tokens=100, bounds=Bounds(0))
    made.arrive(ticket(tokens=80), 0.0)
    second = ticket(tokens=80)
    made.check_room(second, 0.0)
    assert runs(made.arrive(second, 0.0)) == [second]


def test_request_frees_its_prompt_tokens_when_it_ends_early() -> None:
    made = policy(most=8, step_tokens=100)
    first, second = ticket(tokens=80), ticket(tokens=80)
    made.arrive(first, 0.0)
    made.arrive(second, 0.0)
    assert runs(made.end(first, 0.1, is_whole=False)) == [second]


def test_nobody_overtakes_a_large_request_that_is_next() -> None:
    made = policy(most=4)
    running = [ticket() for _ in range(3)]
    for one in running:
        made.arrive(one, 0.0)
    large, small = ticket(choices=4), ticket()
    assert made.arrive(large, 0.1) == []
    assert made.arrive(small, 0.1) == []
    assert runs(serve(made, running[0], 0.2, 1.0)) == []
    assert runs(serve(made, running[1], 0.2, 1.0)) == []
    assert runs(serve(made, running[2], 0.2, 1.0)) == [large]


def test_check_room_refuses_when_the_queue_is_full() -> None:
    made = policy(most=1, bounds=Bounds(1))
    made.check_room(ticket(), 0.0)
    made.arrive(ticket(), 0.0)
    made.check_room(ticket(), 0.0)
    made.arrive(ticket(), 0.0)
    with pytest.raises(ServerOverloaded, match="its queue is full") as refused:
        made.check_room(ticket(), 0.0)
    # The message must not reveal the load of other tenants. Its only number is the time until a retry.
    assert re.findall(r"\d+", refused.value.message) == [f"{refused.value.retry_after_s:.0f}"]


def test_ticket_alone_holds_others_up_for_its_time() -> None:
    made = policy(most=4)
    alone, waiting = ticket(), ticket("b")
    alone.alone_s = 5.0
    assert runs(made.arrive(alone, 0.0)) == [alone]
    assert made.arrive(waiting, 1.0) == []
    assert made.observe(IDLE, 4.9) == []
    assert runs(made.observe(IDLE, 5.0)) == [waiting]
    assert runs(made.arrive(ticket("c"), 5.1))


def test_ticket_alone_is_not_joined_by_one_that_cannot_queue() -> None:
    made = policy(most=4, bounds=Bounds(0))
    alone = ticket()
    alone.alone_s = 5.0
    assert runs(made.arrive(alone, 0.0)) == [alone]
    assert runs(made.arrive(ticket("b"), 1.0)) == []


def test_ticket_alone_lets_others_in_when_it_ends() -> None:
    made = policy(most=4)
    alone, waiting = ticket(), ticket("b")
    alone.alone_s = 5.0
    made.arrive(alone, 0.0)
    made.arrive(waiting, 1.0)
    assert runs(made.end(alone, 2.0, is_whole=False)) == [waiting]
    assert runs(made.arrive(ticket("c"), 2.1))


def test_leaving_the_queue_lets_the_next_one_in() -> None:
    made = policy(most=4)
    running = ticket(choices=3)
    made.arrive(running, 0.0)
    large, small = ticket(choices=4), ticket()
    made.arrive(large, 0.0)
    made.arrive(small, 0.0)
    assert runs(made.leave(large, 0.1)) == [small]
    assert made.leave(large, 0.2) == []


def test_engine_that_keeps_requests_waiting_is_given_no_more() -> None:
    made = policy(most=8)
    made.arrive(ticket(), 0.0)
    # A single look may fall between two steps, so it does not count.
    made.observe(WAITING, 0.1)
    assert runs(made.arrive(ticket(), 0.15))
    made.observe(WAITING, 0.2)
    second = ticket()
    assert made.arrive(second, 0.25) == []
    assert runs(made.observe(IDLE, 0.3)) == [second]


def test_idle_engine_gets_work_whatever_was_seen_of_it() -> None:
    made = policy(most=8)
    made.observe(WAITING, 0.1)
    made.observe(WAITING, 0.2)
    only = ticket()
    assert runs(made.arrive(only, 0.3)) == [only]


# -- with targets


def test_places_are_as_many_as_keep_the_pace() -> None:
    made = policy(most=1000, targets=Targets(tpot_s=0.05), costs=GPU)
    # Admission steers to 97 % of the target.
    assert made.batch.limit == int((0.97 * 0.05 - 0.012) / 0.0001)
    assert policy(most=1000, costs=GPU).batch.limit == 1000


def test_idle_server_takes_a_burst_as_far_as_the_targets_allow() -> None:
    made = policy(most=256, targets=Targets(1.0, 0.05), costs=GPU, step_tokens=8192, bounds=Bounds(512))
    burst = [ticket(tokens=60, most=100) for _ in range(100)]
    assert all(refused(made.arrive(one, 0.0)) == [] for one in burst)


def test_probes_do_not_limit_a_later_burst() -> None:
    made = policy(most=256, targets=Targets(1.0, 0.05), costs=GPU, step_tokens=8192)
    for at in range(60):
        probe = ticket(tokens=5, at_s=float(at), most=1)
        made.arrive(probe, float(at))
        serve(made, probe, at + 0.06, at + 0.06, tokens=1)
    burst = [ticket(tokens=60, at_s=60.5, most=100) for _ in range(20)]
    assert [runs(made.arrive(one, 60.5)) for one in burst] == [[one] for one in burst]


def test_tenant_with_nothing_running_may_start_above_the_places() -> None:
    made = policy(most=100, targets=Targets(tpot_s=0.05), costs=GPU)
    crowd = [ticket("crowd") for _ in range(made.batch.limit)]
    for one in crowd:
        assert runs(made.arrive(one, 0.0)) == [one]
    assert made.arrive(ticket("crowd"), 0.0) == []
    newcomer = ticket("single")
    assert runs(made.arrive(newcomer, 0.0)) == [newcomer]


def test_long_prompts_go_one_at_a_time_and_short_ones_beside() -> None:
    made = policy(most=100, targets=Targets(5.0, 0.2), costs=GPU, step_tokens=8192)
    assert runs(made.arrive(ticket(tokens=20_000), 0.0))
    assert made.arrive(ticket(tokens=20_000), 0.0) == []
    short = ticket("c", tokens=100)
    assert runs(made.arrive(short, 0.0)) == [short]


def test_prompt_waits_while_it_would_break_a_pace() -> None:
    made = policy(most=100, targets=Targets(5.0, 0.05), costs=GPU, step_tokens=8192)
    one = ticket(most=10)
    made.arrive(one, 0.0)
    produce(made, one, 1, 0.02)
    # Each of its nine tokens has 0.036 s to spare, a third of a second in total. This prompt takes 0.4 s.
    long = ticket(tokens=20_000)
    assert made.arrive(long, 0.02) == []
    produce(made, one, 9, 0.2)
    assert runs(made.end(one, 0.2, is_whole=True)) == [long]


def test_request_waits_for_memory() -> None:
    made = policy(most=100, targets=Targets(60.0, 0.2), costs=GPU, kv_tokens=1000)
    first, second = ticket(tokens=400, most=200), ticket(tokens=400, most=200)
    assert runs(made.arrive(first, 0.0)) == [first]
    assert made.arrive(second, 0.0) == []
    assert runs(serve(made, first, 0.1, 2.0, tokens=200)) == [second]


def test_prompt_costs_only_its_uncached_tokens() -> None:
    made = policy(most=100, costs=GPU)
    cached = Ticket("a", 1, 0.0, 10_000, cached_tokens=9_900)
    assert made.batch.own_prompt_s(cached) == made.batch.own_prompt_s(ticket(tokens=100))


def test_request_is_refused_at_once_when_it_would_miss_the_target() -> None:
    made = policy(most=1, targets=Targets(ttft_s=1.0))
    first = ticket(most=40)
    made.arrive(first, 0.0)
    (decision,) = made.arrive(ticket(), 0.0)
    assert decision.refusal is not None
    assert "more than its target of 1 s" in decision.refusal.message
    # The retry is due when the first request has ended. The time that the retry itself may wait is not subtracted,
    # because the first request may take a little longer.
    assert 4.0 < (decision.refusal.retry_after_s or 0) < 4.5


def test_lengths_that_nobody_has_seen_are_taken_to_be_long() -> None:
    told = []
    for ended in (0, 30):
        made = policy(most=10, targets=Targets(ttft_s=0.1), costs=GPU)
        for _ in range(ended):
            one = Ticket("a", 1, 0.0, 10, most_tokens=1000)
            made.arrive(one, 0.0)
            serve(made, one, 0.1, 0.2, tokens=10)
        decisions = [made.arrive(Ticket("a", 1, 1.0, 10, most_tokens=1000), 1.0) for _ in range(11)]
        (decision,) = decisions[-1]
        assert decision.refusal is not None
        told.append(decision.refusal.retry_after_s or 0.0)
    # Without observed lengths, answers of about 400 tokens of 13 ms each are assumed; after 30 answers, of 10 tokens.
    assert told[0] > 4
    assert told[1] < 2


def test_queued_request_is_refused_when_it_waits_too_long() -> None:
    made = policy(most=1, targets=Targets(ttft_s=1.0))
    made.arrive(ticket(most=5), 0.0)
    second = ticket()
    # The first request should take 0.5 s, but it does not end.
    assert made.arrive(second, 0.0) == []
    assert made.observe(IDLE, 0.8) == []
    assert refused(made.observe(IDLE, 1.1)) == [second]
    assert made.queue.choices == 0


def test_refusals_spread_their_retry_times() -> None:
    made = policy(most=1, bounds=Bounds(0))
    made.arrive(ticket(most=20), 0.0)
    refusals = [decision.refusal for _ in range(3) for decision in made.arrive(ticket(most=20), 0.0)]
    told = [refusal.retry_after_s for refusal in refusals if refusal]
    assert told == [pytest.approx(2.0, abs=0.2), pytest.approx(4.0, abs=0.2), pytest.approx(6.0, abs=0.2)]


def test_without_known_costs_nobody_is_refused_for_time() -> None:
    made = policy(most=1, targets=Targets(1.0, 0.05), costs=None)
    made.arrive(ticket(), 0.0)
    assert made.arrive(ticket(), 0.0) == []


def test_client_that_does_not_read_holds_no_prompt_back() -> None:
    made = policy(most=100, targets=Targets(5.0, 0.05), costs=GPU, step_tokens=8192)
    stalled = ticket(most=10)
    made.arrive(stalled, 0.0)
    produce(made, stalled, 1, 0.02)
    made.observe(IDLE, 0.1)
    assert made.arrive(long := ticket("b", tokens=20_000), 0.1) == []
    # The client has got no token for more than 0.5 s.
    assert runs(made.observe(IDLE, 0.7)) == [long]

"""The policy's single decisions: who is let in past whom, who makes room for whom, and what a refusal says."""

from __future__ import annotations

import re

import pytest

from tokka.admission.policy import AdmissionPolicy, Bounds, Decision, Targets
from tokka.admission.ticket import Ticket
from tokka.errors import ServerOverloaded


def ticket(tenant: str = "a", choices: int = 1, tokens: int = 10, at_s: float = 0.0) -> Ticket:
    return Ticket(tenant, choices, at_s, tokens)


def policy(
    most: int = 2,
    bounds: Bounds | None = None,
    targets: Targets | None = None,
    step_tokens: int | None = None,
    weights: dict[str, float] | None = None,
) -> AdmissionPolicy:
    made = AdmissionPolicy(bounds or Bounds(8), targets or Targets(), weights)
    made.resize(most, step_tokens, 0.0)
    return made


def runs(decisions: list[Decision]) -> list[Ticket]:
    return [decision.ticket for decision in decisions if decision.refusal is None]


def refused(decisions: list[Decision]) -> list[Ticket]:
    return [decision.ticket for decision in decisions if decision.refusal is not None]


def serve(made: AdmissionPolicy, one: Ticket, from_s: float, to_s: float, tokens: int = 10) -> list[Decision]:
    """Give a running request its first token and its end."""
    made.produced(one, 1, from_s)
    made.produced(one, tokens - 1, to_s)
    return made.ended(one, tokens, to_s)


def test_what_ends_makes_room_for_what_waits() -> None:
    made = policy(most=1)
    first, second = ticket(), ticket()
    assert runs(made.arrive(first, 0.0)) == [first]
    assert made.arrive(second, 0.0) == []
    assert runs(serve(made, first, 0.1, 1.0)) == [second]
    assert (second.admitted_s, made.running, made.queue.choices) == (1.0, 1, 0)


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
    assert "1 choices of yours wait already, of at most 1" in decision.refusal.message
    assert made.arrive(ticket("other"), 0.0) == []


@pytest.mark.parametrize("bounds", [Bounds(10, tokens=100), Bounds(10, tokens_per_tenant=100)])
def test_prompts_that_wait_are_bounded_but_one_may_be_of_any_length(bounds: Bounds) -> None:
    made = policy(most=1, bounds=bounds)
    made.arrive(ticket(), 0.0)
    assert made.arrive(ticket(tokens=5000), 0.0) == []
    assert refused(made.arrive(ticket(tokens=1), 0.0)) != []


def test_a_prompt_beyond_one_step_waits_until_those_before_it_have_their_first_token() -> None:
    made = policy(most=8, step_tokens=100)
    first, second = ticket(tokens=80), ticket(tokens=30)
    assert runs(made.arrive(first, 0.0)) == [first]
    assert made.arrive(second, 0.0) == []
    assert runs(made.produced(first, 1, 0.5)) == [second]


def test_a_prompt_longer_than_a_step_runs_when_no_other_is_being_computed() -> None:
    made = policy(most=8, step_tokens=100)
    first, long = ticket(tokens=20), ticket(tokens=4000)
    made.arrive(first, 0.0)
    assert made.arrive(long, 0.0) == []
    assert runs(made.produced(first, 1, 0.5)) == [long]


def test_a_prompt_that_may_not_wait_begins_beside_others() -> None:
    made = policy(most=8, step_tokens=100, bounds=Bounds(0))
    made.arrive(ticket(tokens=80), 0.0)
    second = ticket(tokens=80)
    made.check_room(second, 0.0)
    assert runs(made.arrive(second, 0.0)) == [second]


def test_a_request_ended_before_its_first_token_frees_its_prompts_place() -> None:
    made = policy(most=8, step_tokens=100)
    first, second = ticket(tokens=80), ticket(tokens=80)
    made.arrive(first, 0.0)
    made.arrive(second, 0.0)
    assert runs(made.ended(first, 0, 0.1)) == [second]


def test_nothing_more_is_given_to_an_engine_that_keeps_requests_waiting() -> None:
    made = policy(most=8)
    made.arrive(ticket(), 0.0)
    made.look(engine_waiting=1, now_s=0.1)
    second = ticket()
    assert made.arrive(second, 0.2) == []
    assert runs(made.look(engine_waiting=0, now_s=0.3)) == [second]


def test_an_idle_engine_gets_work_whatever_was_last_seen_of_it() -> None:
    made = policy(most=8)
    made.look(engine_waiting=1, now_s=0.1)
    only = ticket()
    assert runs(made.arrive(only, 0.2)) == [only]


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


def test_with_a_pace_to_keep_a_tenant_with_nothing_running_may_start_above_the_limit() -> None:
    made = policy(most=100, targets=Targets(tpot_s=0.1))
    crowd = [ticket("crowd") for _ in range(made.limit.value)]
    for one in crowd:
        assert runs(made.arrive(one, 0.0)) == [one]
    assert made.arrive(ticket("crowd"), 0.0) == []
    newcomer = ticket("single")
    # It is next in turn, for it was served nothing; and one more fits.
    assert runs(made.arrive(newcomer, 0.0)) == [newcomer]
    assert made.arrive(ticket("single"), 0.0) == []


def test_what_would_miss_the_target_is_refused_at_once_and_told_when_to_come_back() -> None:
    made = policy(most=1, targets=Targets(ttft_s=1.0))
    first = ticket()
    made.arrive(first, 0.0)
    second = ticket()
    made.arrive(second, 0.0)
    # Answers take four seconds each.
    assert runs(serve(made, first, 0.1, 4.0)) == []
    assert refused(made.look(0, 4.0)) == []
    third = ticket(at_s=4.0)
    made.arrive(third, 4.0)
    (decision,) = made.arrive(ticket(at_s=4.0), 4.0)
    assert decision.refusal is not None
    assert "more than its target of 1 s" in decision.refusal.message
    assert 3 <= (decision.refusal.retry_after_s or 0) <= 9


def test_what_has_waited_too_long_after_all_is_refused_before_it_costs_anything() -> None:
    made = policy(most=1, targets=Targets(ttft_s=1.0))
    made.arrive(ticket(), 0.0)
    second = ticket()
    # How long answers take is not known yet, so it may wait.
    assert made.arrive(second, 0.0) == []
    assert made.look(0, 0.9) == []
    assert refused(made.look(0, 1.1)) == [second]
    assert made.queue.choices == 0


def test_a_crowd_is_told_to_come_back_one_after_the_other() -> None:
    made = policy(most=1, bounds=Bounds(0))
    first = ticket()
    made.arrive(first, 0.0)
    serve(made, first, 0.1, 2.0)
    made.arrive(ticket(), 2.0)
    told = [
        decision.refusal.retry_after_s for _ in range(3) for decision in made.arrive(ticket(), 2.0) if decision.refusal
    ]
    assert told == [pytest.approx(2.0), pytest.approx(4.0), pytest.approx(6.0)]


def test_the_door_says_what_the_queue_would() -> None:
    made = policy(most=1, bounds=Bounds(1))
    made.check_room(ticket(), 0.0)
    made.arrive(ticket(), 0.0)
    made.check_room(ticket(), 0.0)
    made.arrive(ticket(), 0.0)
    with pytest.raises(ServerOverloaded, match="its queue is full") as refused:
        made.check_room(ticket(), 0.0)
    # Others' load is nobody's business: the one number is when to come back.
    assert re.findall(r"\d+", refused.value.message) == [f"{refused.value.retry_after_s:.0f}"]


def test_ticket_alone_holds_others_up_for_its_time() -> None:
    made = policy(most=4)
    alone, waiting = ticket(), ticket("b")
    alone.alone_s = 5.0
    assert runs(made.arrive(alone, 0.0)) == [alone]
    assert made.arrive(waiting, 1.0) == []
    assert made.look(0, 4.9) == []
    assert runs(made.look(0, 5.0)) == [waiting]
    assert runs(made.arrive(ticket("c"), 5.1))


def test_ticket_alone_lets_others_in_when_it_ends() -> None:
    made = policy(most=4)
    alone, waiting = ticket(), ticket("b")
    alone.alone_s = 5.0
    made.arrive(alone, 0.0)
    made.arrive(waiting, 1.0)
    assert runs(made.ended(alone, 0, 2.0)) == [waiting]
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


def test_a_client_that_does_not_read_says_nothing_about_the_pace() -> None:
    made = policy(most=100, targets=Targets(tpot_s=0.1))
    reading, stalled = ticket("reads"), [ticket("stalls") for _ in range(10)]
    for one in (reading, *stalled):
        made.arrive(one, 0.0)
        made.produced(one, 1, 0.1)
    now_s = 0.1
    while now_s < 20.0:
        now_s += 0.05
        made.produced(reading, 1, now_s)
        made.look(0, now_s)
    assert made.limit.pace_s == pytest.approx(0.05, rel=0.1)
    assert made.limit.value >= 8
    # It reads on, and what has gathered comes at once.
    made.produced(stalled[0], 390, now_s)
    made.look(0, now_s + 0.1)
    assert made.limit.pace_s == pytest.approx(0.05, rel=0.2)


def test_an_engine_that_is_slow_for_all_is_not_taken_for_clients_that_do_not_read() -> None:
    made = policy(most=100, targets=Targets(tpot_s=0.1))
    everyone = [ticket() for _ in range(16)]
    for one in everyone:
        made.arrive(one, 0.0)
        made.produced(one, 1, 0.1)
    for step in range(1, 20):
        made.look(0, 0.1 + 0.4 * step)
        for one in everyone:
            made.produced(one, 1, 0.1 + 0.4 * step)
    assert made.limit.pace_s == pytest.approx(0.4, rel=0.2)
    assert made.limit.value < 16

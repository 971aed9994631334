"""The queue: fair between tenants by served tokens, ordered within a tenant, and without starvation."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from tokka.admission.queue import OUTPUT_COST, FairQueue
from tokka.admission.ticket import Ticket


def ticket(tenant: str, choices: int = 1, prompt_tokens: int = 10, priority: int = 0) -> Ticket:
    return Ticket(tenant, choices, 0.0, prompt_tokens, priority=priority)


def next_of(queue: FairQueue) -> Ticket | None:
    return next(iter(queue.heads()), None)


def turns(queue: FairQueue, count: int, tokens: int = 10) -> list[str]:
    """Serve `count` requests one after the other; return their tenants."""
    served = []
    for _ in range(count):
        turn = next_of(queue)
        assert turn is not None
        queue.remove(turn)
        queue.charge(turn.tenant, turn.prompt_tokens, tokens)
        served.append(turn.tenant)
    return served


def test_one_tenant_is_served_in_order_of_priority_then_arrival() -> None:
    queue = FairQueue()
    late, first, second = ticket("a", priority=1), ticket("a"), ticket("a")
    for entry in (late, first, second):
        queue.put(entry)
    order = []
    while (turn := next_of(queue)) is not None:
        queue.remove(turn)
        order.append(turn)
    assert order == [first, second, late]


def test_priority_does_not_reach_beyond_its_tenant() -> None:
    queue = FairQueue()
    for entry in (ticket("a"), ticket("b", priority=-1000), ticket("b", priority=-1000)):
        queue.put(entry)
    assert set(turns(queue, 2)) == {"a", "b"}


def test_tenants_take_turns_however_many_one_of_them_sends() -> None:
    queue = FairQueue()
    for _ in range(200):
        queue.put(ticket("many"))
    for _ in range(3):
        queue.put(ticket("few"))
    assert Counter(turns(queue, 6)) == {"many": 3, "few": 3}


def test_a_share_is_of_tokens_not_of_requests() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.put(ticket("long", prompt_tokens=90))
        queue.put(ticket("short", prompt_tokens=10))
    served = Counter(turns(queue, 60, tokens=0))
    assert served["short"] / served["long"] > 7


def test_weights_are_multiples_of_a_share() -> None:
    queue = FairQueue({"paying": 3.0})
    for _ in range(100):
        queue.put(ticket("paying"))
        queue.put(ticket("guest"))
    assert Counter(turns(queue, 80)) == {"paying": 60, "guest": 20}


def test_idling_earns_nothing() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.put(ticket("busy"))
    turns(queue, 50)
    for _ in range(50):
        queue.put(ticket("back"))
    # The returning tenant does not get 50 turns in a row.
    assert Counter(turns(queue, 20)) == {"busy": 10, "back": 10}


def test_queue_remembers_tokens_served_to_an_idle_tenant() -> None:
    queue = FairQueue()
    queue.put(ticket("other"))
    queue.charge("greedy", 0, 1000)
    queue.put(ticket("greedy"))
    for _ in range(20):
        queue.put(ticket("other"))
    assert turns(queue, 20) == ["other"] * 20


def test_queue_sums_count_only_queued_requests() -> None:
    queue = FairQueue()
    first, second = ticket("a", 2, 5), ticket("b", 3, 7)
    queue.put(first)
    queue.put(second)
    assert (queue.choices, queue.tokens, queue.waiting_of("a")) == (5, 12, (2, 5))
    assert queue.remove(first)
    assert not queue.remove(first)
    assert (queue.choices, queue.tokens, queue.waiting_of("a")) == (3, 7, (0, 0))


def test_most_greedy_returns_the_last_request_of_a_larger_tenant() -> None:
    queue = FairQueue()
    tickets = [ticket("greedy") for _ in range(4)]
    for entry in tickets:
        queue.put(entry)
    assert queue.most_greedy("modest", 1) is tickets[-1]
    assert queue.most_greedy("modest", 4) is None
    assert queue.most_greedy("greedy", 1) is None


sizes = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100), st.integers(1, 100)), min_size=30, max_size=200)


@given(sizes)
def test_served_tokens_of_queued_tenants_differ_by_two_requests(asked: list[tuple[str, int, int]]) -> None:
    # The paper's bound. It holds for any sizes while each tenant has queued requests.
    queue, waiting = FairQueue(), Counter[str]()
    served: defaultdict[str, float] = defaultdict(float)
    tokens: dict[Ticket, int] = {}
    largest = max(prompt + OUTPUT_COST * output for _, prompt, output in asked)
    for tenant, prompt, output in asked:
        entry = ticket(tenant, prompt_tokens=prompt)
        tokens[entry] = output
        waiting[tenant] += 1
        queue.put(entry)
    while len(waiting) == 3 and all(waiting.values()):
        turn = next_of(queue)
        assert turn is not None
        queue.remove(turn)
        waiting[turn.tenant] -= 1
        queue.charge(turn.tenant, turn.prompt_tokens, tokens[turn])
        served[turn.tenant] += turn.prompt_tokens + OUTPUT_COST * tokens[turn]
        assert max(served.values()) - min(served[name] for name in "abc") <= 2 * largest


@given(sizes, st.sampled_from("abcd"))
def test_ahead_of_never_exceeds_the_queued_choices(asked: list[tuple[str, int, int]], tenant: str) -> None:
    queue = FairQueue()
    for name, prompt, _ in asked:
        queue.put(ticket(name, prompt_tokens=prompt))
    assert queue.waiting_of(tenant)[0] <= queue.ahead_of(tenant, 50.0) <= queue.choices

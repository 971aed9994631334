"""The admission controller: bounds on running and queued choices, the order of the queue, no leaks, draining."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokka.admission.controller
from tests.admission.controllers import controller, engine_of
from tokka.admission.controller import AdmissionController, Slot
from tokka.admission.loop_room import LoopTime
from tokka.admission.policy import AdmissionPolicy, Bounds, Decision
from tokka.admission.targets import Targets
from tokka.admission.ticket import Ticket
from tokka.engine_facts import EngineStats
from tokka.errors import Draining, RequestTimeout, ServerOverloaded, TokkaError


def ticket(choices: int = 1) -> Ticket:
    return Ticket("anyone", choices, time.monotonic())


async def refusal(admission: AdmissionController, choices: int = 1) -> TokkaError | None:
    try:
        with closing(await admission.admit(ticket(choices))):
            return None
    except TokkaError as error:
        return error


class Request:
    """A request in its own task, from its arrival until `end` is called."""

    def __init__(self, admission: AdmissionController, choices: int = 1, timeout_s: float | None = None) -> None:
        self.is_running = False
        self._may_end = asyncio.Event()
        self.task = asyncio.create_task(self._run(admission, choices, timeout_s))

    async def _run(self, admission: AdmissionController, choices: int, timeout_s: float | None) -> None:
        with closing(await admission.admit(ticket(choices), timeout_s)):
            self.is_running = True
            await self._may_end.wait()
        self.is_running = False

    async def end(self) -> None:
        self._may_end.set()
        await self.task


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_choices_up_to_the_bound_run() -> None:
    admission = controller(3)
    with closing(await admission.admit(ticket(2))), closing(await admission.admit(ticket(1))):
        assert admission.open_requests == 2


async def test_a_choice_beyond_both_bounds_is_refused_and_holds_nothing() -> None:
    admission = controller(3)
    with closing(await admission.admit(ticket(3))):
        assert isinstance(await refusal(admission), ServerOverloaded)
        assert admission.open_requests == 1
    assert await refusal(admission, 3) is None


async def test_room_is_given_back_when_the_work_fails() -> None:
    admission = controller(1)
    with pytest.raises(KeyError), closing(await admission.admit(ticket(1))):
        raise KeyError
    assert await refusal(admission) is None


async def test_a_request_larger_than_the_bound_runs_alone() -> None:
    admission = controller(2)
    with closing(await admission.admit(ticket(5))):
        assert isinstance(await refusal(admission), ServerOverloaded)


async def test_queued_requests_run_in_arrival_order() -> None:
    admission = controller(1, max_waiting=8)
    requests = [Request(admission) for _ in range(4)]
    for at, request in enumerate(requests):
        await settle()
        assert [one.is_running for one in requests] == [place == at for place in range(4)]
        assert admission.waiting_choices == 3 - at
        await request.end()
    assert admission.open_requests == 0


async def test_nobody_overtakes_a_large_request_that_waits() -> None:
    admission = controller(4, max_waiting=8)
    first, large = Request(admission, 2), Request(admission, 4)
    await settle()
    small = Request(admission, 1)
    await settle()
    assert (large.is_running, small.is_running) == (False, False)
    await first.end()
    await settle()
    assert (large.is_running, small.is_running) == (True, False)
    await large.end()
    await small.end()


async def test_waiting_ends_with_the_queues_time() -> None:
    admission = controller(1, max_waiting=8, queue_timeout_s=0.01)
    with closing(await admission.admit(ticket(1))):
        error = await refusal(admission)
        assert isinstance(error, RequestTimeout)
        assert (error.status, error.headers()["retry-after"]) == (504, "5")
        assert (admission.waiting_choices, admission.open_requests) == (0, 1)


async def test_waiting_ends_with_the_requests_own_time() -> None:
    admission = controller(1, max_waiting=8)
    with closing(await admission.admit(ticket(1))), pytest.raises(RequestTimeout):
        await Request(admission, timeout_s=0.01).task


async def test_cancelled_queued_request_leaves_the_queue() -> None:
    admission = controller(1, max_waiting=8)
    running, gone, last = Request(admission), Request(admission), Request(admission)
    await settle()
    gone.task.cancel()
    await asyncio.gather(gone.task, return_exceptions=True)
    assert admission.waiting_choices == 1
    await running.end()
    await settle()
    assert last.is_running
    await last.end()
    assert admission.open_requests == 0


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_turn_of_a_cancelled_owner_goes_to_the_next(cancelled_first: bool) -> None:
    admission = controller(1, max_waiting=8)
    running, gone, last = Request(admission), Request(admission), Request(admission)
    await settle()
    # The turn and the cancellation come in the same tick, so the owner does not run in between.
    if cancelled_first:
        gone.task.cancel()
    admission.resize(engine_of(2))
    if not cancelled_first:
        gone.task.cancel()
    await asyncio.gather(gone.task, return_exceptions=True)
    await settle()
    assert [one.is_running for one in (running, gone, last)] == [True, False, True]
    await running.end()
    await last.end()
    assert (admission.policy.batch.choices, admission.open_requests) == (0, 0)


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_refusal_of_a_cancelled_owner_leaves_no_trace(cancelled_first: bool) -> None:
    admission = controller(1, max_waiting=8)
    running, gone = Request(admission), Request(admission)
    await settle()
    if cancelled_first:
        gone.task.cancel()
    admission.refuse_waiting()
    gone.task.cancel()
    await asyncio.gather(gone.task, return_exceptions=True)
    await running.end()
    assert (admission.policy.batch.choices, admission.open_requests) == (0, 0)


async def test_ended_requests_are_forgotten() -> None:
    admission = controller(1, max_waiting=1)
    running, waiting, refused = Request(admission), Request(admission), Request(admission)
    await settle()
    for request in (running, waiting):
        await request.end()
    await asyncio.gather(refused.task, return_exceptions=True)
    for part in (admission, admission.policy, admission.policy.queue):
        # The counters of served tokens are kept on purpose.
        kept = {name: value for name, value in vars(part).items() if isinstance(value, (dict, set)) and value}
        assert kept.keys() <= {"_served"}


async def test_resize_admits_queued_requests() -> None:
    admission = controller(1, max_waiting=8)
    requests = [Request(admission) for _ in range(3)]
    await settle()
    admission.resize(engine_of(3))
    await settle()
    assert all(request.is_running for request in requests)
    for request in requests:
        await request.end()


async def test_an_overloaded_server_says_when_to_retry() -> None:
    admission = controller(3)
    with closing(await admission.admit(ticket(3))):
        error = await refusal(admission)
    assert error is not None
    assert error.message == "The server is busy and its queue is full. Retry in 5 s."
    assert error.headers()["retry-after"] == "5"


async def test_draining_controller_refuses_new_requests() -> None:
    admission = controller(3)
    admission.start_draining()
    error = await refusal(admission)
    assert isinstance(error, Draining)
    assert error.headers()["retry-after"] == "5"
    assert admission.is_draining


async def test_draining_keeps_running_and_queued_requests() -> None:
    admission = controller(1, max_waiting=8)
    running, waiting = Request(admission), Request(admission)
    await settle()
    admission.start_draining()
    await running.end()
    await settle()
    assert waiting.is_running
    await waiting.end()
    await asyncio.wait_for(admission.idle(), 1)


async def test_refuse_waiting_ends_queued_requests_with_draining() -> None:
    admission = controller(1, max_waiting=8)
    running, waiting = Request(admission), Request(admission)
    await settle()
    admission.start_draining()
    admission.refuse_waiting()
    with pytest.raises(Draining):
        await waiting.task
    await running.end()
    assert admission.open_requests == 0


async def test_idle_waits_for_the_last_request() -> None:
    admission = controller(3)
    await asyncio.wait_for(admission.idle(), 1)
    with closing(await admission.admit(ticket(1))):
        with closing(await admission.admit(ticket(1))):
            idle = asyncio.create_task(admission.idle())
        await settle()
        assert not idle.done()
    await asyncio.wait_for(idle, 1)


class Recorder(AdmissionPolicy):
    """A policy that records its events."""

    def __init__(self, max_waiting: int = 0) -> None:
        super().__init__(Bounds(max_waiting), Targets())
        self.begun: list[tuple[int, float]] = []
        self.charged: list[int] = []
        self.ends: list[tuple[int, bool]] = []
        self.looks: list[EngineStats] = []

    def begin(self, ticket: Ticket, now_s: float) -> list[Decision]:
        self.begun.append((ticket.tokens, now_s))
        return super().begin(ticket, now_s)

    def charge(self, ticket: Ticket, tokens: int) -> None:
        self.charged.append(tokens)
        super().charge(ticket, tokens)

    def end(self, ticket: Ticket, now_s: float, *, is_whole: bool) -> list[Decision]:
        self.ends.append((ticket.tokens, is_whole))
        return super().end(ticket, now_s, is_whole=is_whole)

    def observe(self, stats: EngineStats, now_s: float, loop: LoopTime | None = None) -> list[Decision]:
        self.looks.append(stats)
        return super().observe(stats, now_s, loop)


@pytest.mark.parametrize("is_whole", [True, False])
async def test_slot_reports_first_tokens_at_once_the_rest_at_its_end(is_whole: bool) -> None:
    policy = Recorder()
    admission = AdmissionController(policy, queue_timeout_s=60)
    one = ticket()
    with closing(await admission.admit(one)) as slot:
        slot.produced(2, 100.0)
        assert (policy.begun, one.first_token_s) == ([(2, 100.0)], 100.0)
        slot.produced(3, 101.0)
        slot.produced(4, 102.0)
        slot.is_whole = is_whole
        assert policy.charged == []
    assert (policy.begun, policy.charged) == ([(2, 100.0)], [9])
    assert (one.first_token_s, one.last_token_s) == (100.0, 102.0)
    assert policy.ends == [(9, is_whole)]


async def test_slot_that_was_given_nothing_reports_nothing() -> None:
    policy = Recorder()
    with closing(await AdmissionController(policy, queue_timeout_s=60).admit(ticket())):
        pass
    assert (policy.begun, policy.charged, policy.ends) == ([], [], [(0, False)])


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_turn_that_nobody_took_counts_as_served_nothing(cancelled_first: bool) -> None:
    policy = Recorder(max_waiting=8)
    admission = AdmissionController(policy, queue_timeout_s=60)
    running, gone = Request(admission), Request(admission)
    await settle()
    if cancelled_first:
        gone.task.cancel()
    admission.resize(engine_of(2))
    gone.task.cancel()
    await asyncio.gather(gone.task, return_exceptions=True)
    assert policy.ends == [(0, False)]
    await running.end()


async def test_policy_is_charged_for_the_tokens_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.admission.controller, "_LOOK_EVERY_S", 0.0)
    policy, stats, errors = Recorder(), EngineStats(running=5), list[tuple[str, float]]()
    admission = AdmissionController(policy, queue_timeout_s=60, on_error=lambda *error: errors.append(error))
    looking: asyncio.Task[None] = asyncio.create_task(admission.run(lambda: stats))
    with closing(await admission.admit(ticket())) as slot:
        slot.produced(1, 100.0)
        slot.produced(2, 101.0)
        await settle()
        assert policy.charged == [3]
        slot.produced(4, 102.0)
        await settle()
        assert policy.charged == [3, 4]
    policy.errors.append(("ttft", 0.5))
    looks = len(policy.looks)
    await settle()
    assert len(policy.looks) > looks > 1
    assert set(policy.looks) == {stats}
    assert errors == [("ttft", 0.5)]
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_rested_controller_looks_rarely_until_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.admission.controller, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(tokka.admission.controller, "_RESTED_LOOK_EVERY_S", 3600.0)
    monkeypatch.setattr(tokka.admission.controller, "_RESTED_LOOKS", 3)
    policy = Recorder()
    admission = AdmissionController(policy, queue_timeout_s=60)
    looking: asyncio.Task[None] = asyncio.create_task(admission.run(EngineStats))
    await settle()
    assert len(policy.looks) == 3
    with closing(await admission.admit(ticket())):
        await settle()
        looks = len(policy.looks)
        assert looks > 3
        assert admission.late_s < 3600
    await settle()
    # It rests only after three more looks without a request.
    assert len(policy.looks) > looks
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_request_without_a_chance_is_refused_at_once() -> None:
    admission = controller(1)
    admission.check_room(ticket())
    with closing(await admission.admit(ticket())), pytest.raises(ServerOverloaded):
        admission.check_room(ticket())
    admission.start_draining()
    with pytest.raises(Draining):
        admission.check_room(ticket())


@given(st.integers(1, 8), st.integers(0, 8), st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=20))
async def test_admission_exceeds_its_bounds_only_for_one_large_request(
    max_running: int, max_waiting: int, actions: list[tuple[int, bool]]
) -> None:
    admission = controller(max_running, max_waiting)
    running: list[tuple[int, Slot]] = []
    waiting: list[asyncio.Task[None]] = []
    for choices, ends_oldest in actions:
        if ends_oldest and running:
            running.pop(0)[1].close()
            await settle()
        fits = not running or sum(size for size, _ in running) + choices <= max_running
        if fits and not admission.waiting_choices:
            running.append((choices, await admission.admit(ticket(choices))))
        elif admission.waiting_choices + choices > max_waiting:
            assert isinstance(await refusal(admission, choices), ServerOverloaded)
        else:
            request = Request(admission, choices)
            await settle()
            assert not request.is_running
            waiting.append(request.task)
            request.task.cancel()
            await asyncio.gather(request.task, return_exceptions=True)
        assert sum(size for size, _ in running) <= max_running or len(running) == 1
        assert admission.open_requests == len(running)
    for _, slot in running:
        slot.close()

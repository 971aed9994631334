"""Steps of the engine reach each of their requests, even if one fails, and are timed. Run by test_steps.py."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


class Sequence:
    """A receiver that records its outputs, and ends or fails as the test says."""

    gathers_until_s = -math.inf

    def __init__(self, ends_at: int | None = None, fails: bool = False) -> None:
        self.got: list[Any] = []
        self.gathered: list[int] = []
        self._ends_at = ends_at
        self._fails = fails

    def begin(self, cached_tokens: int, scores: Any) -> None:
        self.got.append("begin")

    def take(self, token_ids: list[int], reason: str | None, stop: Any, scores: Any) -> bool:
        if self._fails:
            raise ValueError("a fault of ours")
        self.got += token_ids
        return reason is not None or token_ids[-1] == self._ends_at

    def put(self, output: object) -> None:
        self.got.append(output)


def steps_of(**sequences: Any) -> Any:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    from tokka.engine.vllm.step_processor import StepProcessor

    steps = StepProcessor()
    for name, sequence in sequences.items():
        request = EngineCoreRequest(name, [1], None, SamplingParams(), None, 0.0, None, None, None)
        steps.add(request, None, sequence)
    return steps


def processed(steps: Any, outputs: list[Any], at_s: float = 0.0) -> list[str]:
    """Process a step; return the sequences that a stop string ended."""
    from vllm.v1.metrics.stats import IterationStats

    stopped: list[str] = steps.process(outputs, at_s, IterationStats()).stopped
    return stopped


def step(**tokens: int) -> list[Any]:
    from vllm.v1.engine import EngineCoreOutput

    return [EngineCoreOutput(request_id=name, new_token_ids=[token]) for name, token in tokens.items()]


def test_steps_pass_tokens_on_and_abort_ended_requests() -> None:
    one, other = Sequence(ends_at=6), Sequence()
    steps = steps_of(one=one, other=other)
    assert processed(steps, step(one=5, other=7)) == []
    assert processed(steps, step(one=6, other=8)) == ["one"]
    # The token that the engine has computed meanwhile is dropped.
    assert processed(steps, step(one=9, other=9)) == []
    assert (one.got, other.got) == (["begin", 5, 6], ["begin", 7, 8, 9])
    assert not steps.forget("one")
    assert steps.forget("other")


def test_gathering_sequence_is_called_only_at_its_end() -> None:
    from vllm.v1.engine import FinishReason

    one = Sequence()
    steps = steps_of(one=one)
    processed(steps, step(one=5))
    one.gathers_until_s = math.inf
    assert processed(steps, step(one=6)) == []
    (last,) = step(one=7)
    last.finish_reason = FinishReason.LENGTH
    processed(steps, [last])
    assert (one.got, one.gathered) == (["begin", 5, 7], [6])
    assert not steps.forget("one")


def test_a_fault_in_one_request_ends_that_one_alone() -> None:
    broken, well = Sequence(fails=True), Sequence()
    steps = steps_of(broken=broken, well=well)
    assert processed(steps, step(broken=1, well=2)) == ["broken"]
    assert processed(steps, step(broken=3, well=4)) == []
    assert isinstance(broken.got[-1], ValueError)
    assert well.got == ["begin", 2, 4]


class Client:
    """The part of the engine's client that the handler uses. Its messages are steps, and need no decoding."""

    def __init__(self, **sequences: Sequence) -> None:
        from tokka.engine.vllm.stats import StepStats

        self.steps = steps_of(**sequences)
        self.stats = StepStats(None)
        self.aborted: list[str] = []
        self.errors: list[Exception] = []

    def decode(self, frames: list[Any]) -> Any:
        if isinstance(frames[0], Exception):
            raise frames[0]
        return frames[0]

    def answer(self, output: Any) -> None:
        raise AssertionError(output)

    def note_finished(self, ids: set[str]) -> None:
        raise AssertionError(ids)

    def abort(self, ids: list[str]) -> None:
        self.aborted += ids

    def fail(self, error: Exception) -> None:
        self.errors.append(error)


class Socket:
    """The messages that wait for a handler."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.on_message: Any = None

    def watch(self, on_message: Any) -> None:
        self.on_message = on_message

    def receive(self) -> list[Any] | None:
        return [self.messages.pop(0)] if self.messages else None

    def stop(self) -> None:
        self.on_message = None

    def bring(self, *messages: Any) -> None:
        self.messages += messages
        self.on_message()


def handler_of(client: Client) -> Socket:
    """Return the socket of a new handler."""
    from tokka.engine.vllm.step_handler import StepHandler

    socket: Any = Socket()
    StepHandler(socket, client).listen()
    return socket  # type: ignore[no-any-return]


def whole_step(outputs: list[Any], running: int = 1) -> Any:
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats

    return EngineCoreOutputs(outputs=outputs, scheduler_stats=SchedulerStats(num_running_reqs=running))


async def test_a_step_is_dealt_with_when_it_arrives() -> None:
    one = Sequence(ends_at=6)
    client = Client(one=one)
    socket = handler_of(client)
    socket.bring(whole_step(step(one=5), running=3))
    assert one.got == ["begin", 5]
    latest = client.stats.latest[0]
    assert (latest.scheduler.num_running_reqs, latest.steps) == (3, 1)
    socket.bring(whole_step(step(one=6), running=0))
    assert client.aborted == ["one"]


async def test_a_large_step_is_dealt_with_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokka.engine.vllm import step_handler

    names = [f"s{number}" for number in range(1000)]
    sequences = {name: Sequence(ends_at=2) for name in names}
    client = Client(**sequences)
    socket = handler_of(client)
    # Each check of the clock finds the slice used up.
    monkeypatch.setattr(step_handler, "SLICE_S", -1.0)
    socket.bring(whole_step(step(**dict.fromkeys(names, 1))))
    socket.bring(whole_step(step(**dict.fromkeys(names, 2))))
    begun = [name for name in names if sequences[name].got]
    assert 0 < len(begun) < 100
    turns = 0
    while client.steps.get_num_unfinished_requests():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20
    assert all(sequences[name].got == ["begin", 1, 2] for name in names)
    assert sorted(client.aborted) == sorted(names)
    await asyncio.sleep(0)
    assert client.stats.latest[0].steps == 2


async def test_an_error_in_a_message_goes_to_the_client() -> None:
    one = Sequence()
    client = Client(one=one)
    socket = handler_of(client)
    lost = RuntimeError("the engine is gone")
    socket.bring(whole_step(step(one=1)), lost)
    socket.bring(whole_step([None]))
    assert one.got == ["begin", 1]
    assert client.errors[0] is lost
    assert isinstance(client.errors[1], AttributeError)


class Manager:
    """The part of vLLM's recorder of statistics that Tokka uses."""

    def __init__(self) -> None:
        self.stat_loggers: list[Any] = []
        self.recorded: list[Any] = []
        self.has_recorded = asyncio.Event()

    def record(self, **stats: Any) -> None:
        self.recorded.append(stats)
        self.has_recorded.set()


def scheduler_stats(running: int, **fields: Any) -> Any:
    from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats

    prefix = PrefixCacheStats(requests=1, queries=fields.pop("queries", 0), hits=fields.pop("hits", 0))
    return SchedulerStats(num_running_reqs=running, prefix_cache_stats=prefix, **fields)


async def test_steps_are_recorded_together_a_little_later() -> None:
    from tokka.engine.vllm.stats import StepStats

    manager: Any = Manager()
    stats = StepStats(manager)
    stats.record()
    for running, (queries, hits) in enumerate([(10, 1), (20, 2), (40, 4)]):
        stats.iteration(0).num_generation_tokens += 5
        stats.add(0, scheduler_stats(running, queries=queries, hits=hits), 5, preemptions=1)
    stats.add(1, scheduler_stats(0), None, preemptions=0)
    assert not manager.recorded
    assert (stats.latest[0].steps, stats.latest[0].preemptions, stats.latest[1].steps) == (3, 3, 0)
    await manager.has_recorded.wait()
    first, second = manager.recorded
    assert (first["engine_idx"], second["engine_idx"]) == (0, 1)
    assert first["iteration_stats"].num_generation_tokens == 15
    prefix = first["scheduler_stats"].prefix_cache_stats
    # Of the state the latest counts, of the counters the sum.
    assert (first["scheduler_stats"].num_running_reqs, prefix.requests, prefix.queries, prefix.hits) == (2, 3, 70, 7)


async def test_steps_with_rare_statistics_are_recorded_one_by_one() -> None:
    from vllm.v1.metrics.stats import PrefixCacheStats

    from tokka.engine.vllm.stats import StepStats

    manager: Any = Manager()
    stats = StepStats(manager)
    stats.record()
    for running in range(3):
        connector = PrefixCacheStats(requests=1) if running == 1 else None
        stats.add(0, scheduler_stats(running, queries=1, connector_prefix_cache_stats=connector), 1, preemptions=0)
    await manager.has_recorded.wait()
    recorded = [
        (step["scheduler_stats"].num_running_reqs, step["scheduler_stats"].prefix_cache_stats.queries)
        for step in manager.recorded
    ]
    assert recorded == [(1, 2), (2, 1)]
    assert [step["iteration_stats"] is None for step in manager.recorded] == [True, False]


async def test_step_of_a_warm_up_is_not_recorded() -> None:
    from tokka.engine.vllm.stats import StepStats

    manager: Any = Manager()
    stats = StepStats(manager)
    warm, real = scheduler_stats(1), scheduler_stats(2)
    stats.iteration(0).num_generation_tokens += 1
    stats.add(0, warm, 1, preemptions=0)
    stats.record()
    stats.iteration(0).num_generation_tokens += 3
    stats.add(0, real, 3, preemptions=0)
    await manager.has_recorded.wait()
    (step,) = manager.recorded
    assert (step["scheduler_stats"], step["iteration_stats"].num_generation_tokens) == (real, 3)
    # The watchdog needs to see both.
    assert stats.latest[0].steps == 2


def test_observe_all_counts_like_single_observations() -> None:
    from tokka.engine.vllm.stats import observe_all

    registry = CollectorRegistry()
    one, all_ = (Histogram(name, "latency", buckets=(0.1, 0.5, 1.0), registry=registry) for name in ("one", "all"))
    # Values on the bounds, between them, and beyond the last one.
    values = [0.0, 0.1, 0.5, 1.0, 7.0, *(random.Random(3).uniform(0, 2) for _ in range(200))]
    for value in values:
        one.observe(value)
    observe_all(all_, values)
    for bound in ("0.1", "0.5", "1.0", "+Inf"):
        counts = [registry.get_sample_value(f"{name}_bucket", {"le": bound}) for name in ("one", "all")]
        assert counts[0] == counts[1]
    assert registry.get_sample_value("all_sum") == pytest.approx(sum(values))


# -- durations of steps


def timed_step(at_s: float, *, running: int, scheduled_s: float | None = None, copy: int = 0, **details: Any) -> Any:
    """Return a step that ended at `at_s`. `details`: its work. `scheduled_s`: when its new request was scheduled."""
    from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerIterationDetails, SchedulerStats

    events = [EngineCoreEvent(EngineCoreEventType.SCHEDULED, scheduled_s)] if scheduled_s is not None else None
    computed = {"num_ctx_requests": 0, "num_ctx_tokens": 0, "num_generation_requests": 0, "num_generation_tokens": 0}
    known = SchedulerIterationDetails(iteration_index=0, elapsed_ms=1.0, **{**computed, **details})
    stats = SchedulerStats(num_running_reqs=running, kv_cache_usage=0.5, iteration_details=known)
    outputs = [EngineCoreOutput("one", [5], events=events)]
    return EngineCoreOutputs(engine_index=copy, outputs=outputs, scheduler_stats=stats, timestamp=at_s)


class Learner:
    """Records the steps that a learner gets."""

    costs = None

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []

    def add(self, *step: Any) -> None:
        self.steps.append((round(step[0], 6), *step[1:]))


def times_of(learner: Learner) -> Any:
    from tokka.engine.vllm.step_times import StepTimes

    times = StepTimes()
    times._learner = learner  # type: ignore[assignment]
    times.learn(kv_tokens=1000)
    return times


def test_step_took_the_time_since_the_one_before() -> None:
    learner = Learner()
    times = times_of(learner)
    times.add(timed_step(10.0, running=1, scheduled_s=9.9, num_ctx_requests=1, num_ctx_tokens=30), 10.0)
    times.add(timed_step(10.02, running=1, num_generation_requests=1, num_generation_tokens=1), 10.02)
    assert learner.steps == [(0.1, 0, 30, 500, None), (0.02, 1, 0, 500, None)]


def test_step_after_idleness_took_the_time_since_it_was_scheduled() -> None:
    learner = Learner()
    times = times_of(learner)
    times.add(timed_step(10.0, running=0, scheduled_s=9.9, num_ctx_requests=1, num_ctx_tokens=30), 10.0)
    times.add(timed_step(60.0, running=1, scheduled_s=59.8, num_ctx_requests=1, num_ctx_tokens=30), 60.0)
    times.add(timed_step(61.0, running=0, num_generation_requests=1, num_generation_tokens=1), 61.0)
    # This part of a prompt follows idleness and has no scheduling time, so its start is unknown.
    times.add(timed_step(90.0, running=1, num_ctx_requests=1, num_ctx_tokens=30), 90.0)
    assert [step[0] for step in learner.steps] == [0.1, 0.2, 1.0]


def test_step_time_includes_the_wait_for_this_process() -> None:
    learner = Learner()
    times = times_of(learner)
    # The engine ends a step every 10 ms, and this process needs 25 ms for each.
    for number in range(4):
        scheduled_s = 9.99 if number == 0 else None
        step = timed_step(10.0 + 0.01 * number, running=1, scheduled_s=scheduled_s, num_generation_requests=1)
        times.add(step, 10.025 + 0.025 * number)
    assert [step[0] for step in learner.steps] == [0.01, 0.025, 0.025, 0.025]


def test_pause_of_this_process_does_not_count_as_a_slow_step() -> None:
    learner = Learner()
    times = times_of(learner)
    times.add(timed_step(10.0, running=1, scheduled_s=9.99, num_generation_requests=1), 10.001)
    # After a pause of 0.2 s, the steps of that time are processed in quick succession.
    for number in range(1, 4):
        times.add(timed_step(10.0 + 0.01 * number, running=1, num_generation_requests=1), 10.2 + 0.001 * number)
    assert [step[0] for step in learner.steps] == [0.01, 0.01, 0.01, 0.01]


def test_steps_of_copies_are_timed_apart() -> None:
    learner = Learner()
    times = times_of(learner)
    for copy in (0, 1):
        at_s = 10.0 + copy
        times.add(timed_step(at_s, running=1, scheduled_s=at_s - 0.1, copy=copy, num_generation_requests=1), at_s)
    times.add(timed_step(11.5, running=1, copy=1, num_generation_requests=1), 11.5)
    assert [step[0] for step in learner.steps] == [0.1, 0.1, 0.5]


def test_recomputed_tokens_count_as_prompt_tokens() -> None:
    learner = Learner()
    times = times_of(learner)
    times.add(timed_step(10.0, running=2, scheduled_s=9.9, num_generation_requests=2, num_generation_tokens=400), 10.0)
    assert learner.steps == [(0.1, 2, 398, 500, None)]


def test_steps_of_a_start_are_not_learnt_and_details_taken_away() -> None:
    from tokka.engine.vllm.step_times import StepTimes

    times = StepTimes()
    one = timed_step(10.0, running=1, scheduled_s=9.9, num_generation_requests=1)
    times.add(one, 10.0)
    assert one.scheduler_stats.iteration_details is None
    assert times.costs is None

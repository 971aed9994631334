"""Steps of the engine reach each of their requests, even if one fails, and are timed. Run by test_steps.py."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


class Sequence:
    """A receiver that records its outputs, and ends or fails as the test says."""

    def __init__(self, ends_at: int | None = None, fails: bool = False) -> None:
        self.got: list[Any] = []
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


def steps_of(**sequences: Sequence) -> Any:
    from vllm.v1.engine.output_processor import RequestState

    from tokka.engine.vllm.stats import StepStats
    from tokka.engine.vllm.step_processor import StepProcessor

    steps = StepProcessor(None, log_stats=False, stats=StepStats(None))
    for name, sequence in sequences.items():
        steps.request_states[name] = RequestState(
            request_id=name,
            external_req_id=f"{name}-0",
            parent_req=None,
            request_index=0,
            lora_request=None,
            output_kind=None,
            prompt=None,
            prompt_token_ids=[1],
            prompt_embeds=None,
            logprobs_processor=None,
            detokenizer=None,
            max_tokens_param=None,
            arrival_time=0.0,
            queue=sequence,
            log_stats=False,
            stream_interval=1,
        )
        steps.external_req_ids[f"{name}-0"].append(name)
    return steps


def step(**tokens: int) -> list[Any]:
    from vllm.v1.engine import EngineCoreOutput

    return [EngineCoreOutput(request_id=name, new_token_ids=[token]) for name, token in tokens.items()]


def test_each_request_gets_its_tokens_and_one_that_has_ended_is_stopped() -> None:
    one, other = Sequence(ends_at=6), Sequence()
    steps = steps_of(one=one, other=other)
    assert steps.process_outputs(step(one=5, other=7)).reqs_to_abort == []
    assert steps.process_outputs(step(one=6, other=8)).reqs_to_abort == ["one"]
    # The token that the engine has computed meanwhile is dropped.
    assert steps.process_outputs(step(one=9, other=9)).reqs_to_abort == []
    assert (one.got, other.got) == (["begin", 5, 6], ["begin", 7, 8, 9])
    assert not steps.forget("one-0")
    assert steps.forget("other-0")


def test_a_fault_in_one_request_ends_that_one_alone() -> None:
    broken, well = Sequence(fails=True), Sequence()
    steps = steps_of(broken=broken, well=well)
    assert steps.process_outputs(step(broken=1, well=2)).reqs_to_abort == ["broken"]
    assert steps.process_outputs(step(broken=3, well=4)).reqs_to_abort == []
    assert isinstance(broken.got[-1], ValueError)
    assert well.got == ["begin", 2, 4]


class Core:
    """The part of vLLM's client that the queue uses."""

    def __init__(self) -> None:
        self.aborted: list[str] = []

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids


def whole_step(outputs: list[Any], running: int = 1) -> Any:
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats

    return EngineCoreOutputs(outputs=outputs, scheduler_stats=SchedulerStats(num_running_reqs=running))


async def test_a_step_is_dealt_with_when_it_is_put() -> None:
    from tokka.engine.vllm.step_handler import StepHandler

    one, core = Sequence(ends_at=6), Core()
    steps = steps_of(one=one)
    queue = StepHandler(core, steps)
    queue.put_nowait(whole_step(step(one=5), running=3))
    assert one.got == ["begin", 5]
    assert (steps.stats.latest[0].scheduler.num_running_reqs, steps.stats.latest[0].steps) == (3, 1)
    queue.put_nowait(whole_step(step(one=6), running=0))
    await asyncio.sleep(0)
    assert core.aborted == ["one"]
    # vLLM's second task does not get the step.
    assert queue.empty()


async def test_a_large_step_is_dealt_with_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokka.engine.vllm import step_handler

    names = [f"s{number}" for number in range(1000)]
    sequences = {name: Sequence(ends_at=2) for name in names}
    core, steps = Core(), steps_of(**sequences)
    queue = step_handler.StepHandler(core, steps)
    # Each check of the clock finds the slice used up.
    monkeypatch.setattr(step_handler, "SLICE_S", -1.0)
    queue.put_nowait(whole_step(step(**dict.fromkeys(names, 1))))
    queue.put_nowait(whole_step(step(**dict.fromkeys(names, 2))))
    begun = [name for name in names if sequences[name].got]
    assert 0 < len(begun) < 100
    turns = 0
    while steps.request_states:
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20
    assert all(sequences[name].got == ["begin", 1, 2] for name in names)
    await asyncio.sleep(0)
    assert sorted(core.aborted) == sorted(names)
    assert steps.stats.latest[0].steps == 2


async def test_an_error_in_a_slice_does_not_stop_the_steps_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokka.engine.vllm import step_handler

    one = Sequence()
    steps = steps_of(one=one)
    queue = step_handler.StepHandler(Core(), steps)
    monkeypatch.setattr(step_handler, "SLICE_S", -1.0)
    queue.put_nowait(whole_step(step(one=1)))
    queue.put_nowait(SimpleNamespace(outputs=[None], timestamp=0.0))
    queue.put_nowait(whole_step(step(one=2)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert one.got == ["begin", 1, 2]
    assert isinstance(await queue.get(), AttributeError)


async def test_an_error_goes_to_the_task_that_ends_the_generations() -> None:
    from tokka.engine.vllm.step_handler import StepHandler

    queue = StepHandler(Core(), steps_of())
    lost = RuntimeError("the engine is gone")
    queue.put_nowait(lost)
    assert await queue.get() is lost
    queue.put_nowait(SimpleNamespace(outputs=None, timestamp=0.0))
    assert isinstance(await queue.get(), TypeError)


class Manager:
    """The part of vLLM's recorder of statistics that Tokka uses."""

    def __init__(self) -> None:
        self.stat_loggers: list[Any] = []
        self.recorded: list[Any] = []
        self.has_recorded = asyncio.Event()

    def record(self, **stats: Any) -> None:
        self.recorded.append(stats)
        self.has_recorded.set()


async def test_every_step_is_recorded_a_little_later() -> None:
    from tokka.engine.vllm.stats import StepStats

    manager: Any = Manager()
    stats = StepStats(manager)
    stats.record()
    first, second = SimpleNamespace(num_running_reqs=1), SimpleNamespace(num_running_reqs=0)
    stats.add(0, first, None)
    stats.add(1, second, None)
    assert not manager.recorded
    assert (stats.latest[0].steps, stats.latest[1].steps) == (1, 0)
    await manager.has_recorded.wait()
    assert manager.recorded == [
        {"engine_idx": 0, "scheduler_stats": first, "iteration_stats": None},
        {"engine_idx": 1, "scheduler_stats": second, "iteration_stats": None},
    ]


async def test_step_of_a_warm_up_is_not_recorded() -> None:
    from tokka.engine.vllm.stats import StepStats

    manager: Any = Manager()
    stats = StepStats(manager)
    warm, real = SimpleNamespace(num_running_reqs=1), SimpleNamespace(num_running_reqs=2)
    stats.add(0, warm, None)
    stats.record()
    stats.add(0, real, None)
    await manager.has_recorded.wait()
    assert [step["scheduler_stats"] for step in manager.recorded] == [real]
    # The watchdog needs to see both.
    assert stats.latest[0].steps == 2


def test_values_observed_together_count_like_those_observed_one_by_one() -> None:
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
    times.add(timed_step(10.0, running=1, scheduled_s=9.9, num_ctx_requests=1, num_ctx_tokens=30))
    times.add(timed_step(10.02, running=1, num_generation_requests=1, num_generation_tokens=1))
    assert learner.steps == [(0.1, 0, 30, 500, None), (0.02, 1, 0, 500, None)]


def test_step_after_idleness_took_the_time_since_it_was_scheduled() -> None:
    learner = Learner()
    times = times_of(learner)
    times.add(timed_step(10.0, running=0, scheduled_s=9.9, num_ctx_requests=1, num_ctx_tokens=30))
    times.add(timed_step(60.0, running=1, scheduled_s=59.8, num_ctx_requests=1, num_ctx_tokens=30))
    times.add(timed_step(61.0, running=0, num_generation_requests=1, num_generation_tokens=1))
    # This part of a prompt follows idleness and has no scheduling time, so its start is unknown.
    times.add(timed_step(90.0, running=1, num_ctx_requests=1, num_ctx_tokens=30))
    assert [step[0] for step in learner.steps] == [0.1, 0.2, 1.0]


def test_steps_of_copies_are_timed_apart() -> None:
    learner = Learner()
    times = times_of(learner)
    for copy in (0, 1):
        times.add(timed_step(10.0 + copy, running=1, scheduled_s=9.9 + copy, copy=copy, num_generation_requests=1))
    times.add(timed_step(11.5, running=1, copy=1, num_generation_requests=1))
    assert [step[0] for step in learner.steps] == [0.1, 0.1, 0.5]


def test_what_is_computed_anew_counts_as_a_prompt() -> None:
    learner = Learner()
    times = times_of(learner)
    times.add(timed_step(10.0, running=2, scheduled_s=9.9, num_generation_requests=2, num_generation_tokens=400))
    assert learner.steps == [(0.1, 2, 398, 500, None)]


def test_steps_of_a_start_are_not_learnt_and_details_taken_away() -> None:
    from tokka.engine.vllm.step_times import StepTimes

    times = StepTimes()
    one = timed_step(10.0, running=1, scheduled_s=9.9, num_generation_requests=1)
    times.add(one)
    assert one.scheduler_stats.iteration_details is None
    assert times.costs is None

"""The engine's statistics: the latest at once for Tokka, all of them a little later for vLLM's own metrics."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerManager
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from tokka.engine.vllm.step_times import StepTimes

# Maximum seconds until a step is recorded. The cost of a record hardly depends on the number of its steps.
_RECORD_EVERY_S = 0.25
# Counters of SchedulerStats.prefix_cache_stats.
_PREFIX_COUNTERS = ("requests", "queries", "hits", "preempted_requests", "preempted_queries", "preempted_hits")


@dataclass(slots=True)
class LatestStats:
    """The latest statistics of one copy of the model."""

    scheduler: Any = None
    # Steps that did some work: the scheduler also runs while it cannot place its requests.
    steps: int = 0
    # Requests preempted for lack of memory.
    preemptions: int = 0


@dataclass(slots=True)
class _Waiting:
    """The statistics of one copy that are not recorded yet."""

    # Sums over all steps.
    iteration: IterationStats = field(default_factory=IterationStats)
    # Statistics that vLLM must record one by one. Usually only the latest.
    schedulers: list[SchedulerStats] = field(default_factory=list)
    # Tokens of each step.
    step_tokens: list[int] = field(default_factory=list)


class StepStats:
    """Sums the statistics of steps and records the sums. Belongs to the event loop.

    Recording each step takes 24 us. `manager`: vLLM's recorder, or None to record nothing. vLLM observes the tokens of
    each record once; here the steps are observed instead.

    Nothing is recorded until `record` is called: warm-up requests must not count.
    """

    def __init__(self, manager: StatLoggerManager | None) -> None:
        self.latest: defaultdict[int, LatestStats] = defaultdict(LatestStats)
        self.times = StepTimes()
        self._manager = manager
        self._records = False
        self._latencies: Mapping[int, Any] = {}
        self._step_tokens: Mapping[int, Any] = {}
        for logger in manager.stat_loggers if manager else ():
            if isinstance(logger, PrometheusStatLogger):
                self._latencies = logger.histogram_inter_token_latency
                self._step_tokens = logger.histogram_iteration_tokens
                logger.histogram_iteration_tokens = dict.fromkeys(self._step_tokens, _Ignored())
        self._waiting: dict[int, _Waiting] = {}
        self._has_timer = False

    def record(self) -> None:
        """Start recording."""
        self._records = self._manager is not None
        self._waiting.clear()

    def iteration(self, engine: int) -> IterationStats:
        """Return the sums to which the next part of a step is added now."""
        iteration = self._of(engine).iteration
        iteration.iteration_timestamp = time.time()
        return iteration

    def add(self, engine: int, scheduler: SchedulerStats | None, tokens: int | None, preemptions: int) -> None:
        """Add a processed step. `tokens`: computed and generated; None: the step has no outputs."""
        latest = self.latest[engine]
        if scheduler is not None:
            latest.scheduler = scheduler
        if tokens is not None or (scheduler is not None and scheduler.num_running_reqs):
            latest.steps += 1
        latest.preemptions += preemptions
        if not self._records:
            self._waiting.clear()
            return
        waiting = self._of(engine)
        if tokens is not None:
            waiting.step_tokens.append(tokens)
        if scheduler is not None:
            if waiting.schedulers and _can_merge(waiting.schedulers[-1]):
                _merge(waiting.schedulers.pop(), scheduler)
            waiting.schedulers.append(scheduler)
        if not self._has_timer:
            self._has_timer = True
            asyncio.get_running_loop().call_later(_RECORD_EVERY_S, self._record_waiting)

    def _of(self, engine: int) -> _Waiting:
        if (waiting := self._waiting.get(engine)) is None:
            waiting = self._waiting[engine] = _Waiting()
        return waiting

    def _record_waiting(self) -> None:
        everything, self._waiting, self._has_timer = self._waiting, {}, False
        assert self._manager is not None
        for engine, waiting in everything.items():
            latencies, waiting.iteration.inter_token_latencies_iter = waiting.iteration.inter_token_latencies_iter, []
            *earlier, last = waiting.schedulers or [None]
            for scheduler in earlier:
                self._manager.record(engine_idx=engine, scheduler_stats=scheduler, iteration_stats=None)
            self._manager.record(engine_idx=engine, scheduler_stats=last, iteration_stats=waiting.iteration)
            if engine in self._latencies:
                observe_all(self._latencies[engine], latencies)
                observe_all(self._step_tokens[engine], waiting.step_tokens)


class _Ignored:
    """A histogram that ignores what vLLM observes."""

    def observe(self, value: float) -> None:
        pass


def _can_merge(stats: SchedulerStats) -> bool:
    """Return whether the statistics of a step are only a current state, and counters of the prefix cache."""
    return (
        not stats.prefix_cache_stats.reset
        and stats.connector_prefix_cache_stats is None
        and not stats.kv_cache_eviction_events
        and stats.spec_decoding_stats is None
        and stats.kv_connector_stats is None
        and stats.ec_connector_stats is None
        and stats.cudagraph_stats is None
        and stats.perf_stats is None
    )


def _merge(older: SchedulerStats, newer: SchedulerStats) -> None:
    """Add the counters of one step to the next."""
    before = older.prefix_cache_stats
    if before.requests or before.preempted_requests:
        for name in _PREFIX_COUNTERS:
            setattr(newer.prefix_cache_stats, name, getattr(newer.prefix_cache_stats, name) + getattr(before, name))


def observe_all(histogram: Any, values: Sequence[float]) -> None:
    """Observe all values at once. There is one per token, and separate `observe` calls cost ten times as much."""
    in_bucket: Counter[int] = Counter()
    # Sequences of one step mostly have the same latency.
    for value, count in Counter(values).items():
        in_bucket[bisect_left(histogram._upper_bounds, value)] += count
    for place, count in in_bucket.items():
        histogram._buckets[place].inc(count)
    histogram._sum.inc(sum(values))

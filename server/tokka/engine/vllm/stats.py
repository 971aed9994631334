"""The engine's latest numbers, kept as vLLM reports them after each step."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class LatestStats(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.stats: Any = None
        # Steps that worked on something: the scheduler also turns over with work that it cannot place.
        self.steps = 0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is not None:
            self.stats = scheduler_stats
        if iteration_stats is not None or (scheduler_stats is not None and scheduler_stats.num_running_reqs):
            self.steps += 1

    def log_engine_initialized(self) -> None:
        return None

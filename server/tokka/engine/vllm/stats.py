"""The engine's latest numbers, kept as vLLM reports them after each step."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class LatestStats(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.stats: Any = None

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is not None:
            self.stats = scheduler_stats

    def log_engine_initialized(self) -> None:
        return None

"""Full garbage collections run while no request is open."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from tokka.engine.supervision import heap as module
from tokka.engine.supervision.heap import collect_while_idle, is_full_due, trim_heap


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("collections", "open_requests", "is_due"),
    [(9, 0, False), (10, 0, True), (10, 1, False), (19_999, 5, False), (20_000, 5, True)],
)
def test_full_collection_waits_for_an_idle_server(collections: int, open_requests: int, is_due: bool) -> None:
    assert is_full_due(collections, open_requests) is is_due


async def test_python_runs_no_full_collection_by_itself(
    thresholds: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(module, "_DUE_IDLE", 0)
    open_requests = 1
    running = asyncio.create_task(collect_while_idle(lambda: open_requests))
    await asyncio.sleep(0)
    assert gc.get_threshold()[:2] == thresholds[:2]
    before = gc.get_stats()[2]["collections"]
    kept = [[] for _ in range(200_000)]  # type: ignore[var-annotated]
    await asyncio.sleep(0.01)
    assert gc.get_stats()[2]["collections"] == before
    open_requests = 0
    await asyncio.sleep(0.01)
    assert gc.get_stats()[2]["collections"] > before
    running.cancel()
    assert len(kept) == 200_000


def test_trimmed_heap_is_exempt_from_collection() -> None:
    kept = [[number] for number in range(1000)]
    trim_heap()
    try:
        assert gc.get_freeze_count() > len(kept)
    finally:
        gc.unfreeze()

"""Measured turns of the event loop: their own CPU time, and separately that of other threads."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
import uvloop

from tests.program import TURN_BOUND_S, running
from tests.wire import metric
from tokka.observability import loop_turns
from tokka.observability.loop_turns import LoopTurns, Turn


def burn(cpu_s: float) -> None:
    until_s = time.thread_time() + cpu_s
    while time.thread_time() < until_s:
        pass


async def measured(turns: int, work_s: float) -> list[Turn]:
    """Return the measurements of `turns` turns, each with `work_s` seconds of CPU."""
    seen: list[Turn] = []
    measure = LoopTurns(seen.append)
    measure.start()
    for _ in range(turns):
        burn(work_s)
        await asyncio.sleep(0)
    measure.close()
    return seen


def test_loop_turns_measure_a_long_turn() -> None:
    for new_loop in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            seen = runner.run(measured(3, 0.4))
        # The thread looks every 0.02 s, or later if other programs delay it.
        assert 0.2 < max(turn.cpu_s for turn in seen) < 0.6


def test_loop_turns_stay_short_when_work_is_sliced() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(measured(300, 0.002))
    assert seen
    # A marker waits for the current slice, but not for the ones after it.
    assert max(turn.cpu_s for turn in seen) < 0.02


def test_loop_turns_leave_an_idle_loop_asleep() -> None:
    async def idle() -> list[Turn]:
        seen: list[Turn] = []
        measure = LoopTurns(seen.append)
        measure.start()
        await asyncio.sleep(0.3)
        measure.close()
        return seen

    assert asyncio.run(idle()) == []


def test_loop_turns_sleep_until_the_loop_uses_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(loop_turns, "time", SimpleNamespace(**{**vars(time), "sleep": sleep}))

    async def idle_then_busy() -> list[Turn]:
        seen: list[Turn] = []
        measure = LoopTurns(seen.append)
        measure.start()
        await asyncio.sleep(0.3)
        # The start itself may have used some CPU.
        assert len(looks) <= 2
        burn(0.4)
        await asyncio.sleep(0)
        measure.close()
        return seen

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(idle_then_busy())
    assert 0.2 < max(turn.cpu_s for turn in seen) < 0.6


def test_loop_turns_are_measured_without_sleep_on_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_turns, "_sleep_until", lambda clock, time_s: None)
    test_loop_turns_measure_a_long_turn()
    test_loop_turns_leave_an_idle_loop_asleep()


def test_loop_turns_measure_other_threads_separately() -> None:
    async def beside_a_thread() -> list[Turn]:
        seen: list[Turn] = []
        measure = LoopTurns(seen.append)
        measure.start()
        is_seen = threading.Event()

        def hold() -> None:
            # Holds the interpreter's lock for longer than the loop's own work takes.
            while not is_seen.is_set():
                sorted(range(3_000_000, 0, -1))

        holder = threading.Thread(target=hold)
        holder.start()
        # Now and then the thread takes the lock while a marker waits.
        while not any(turn.threads_s > 0.02 for turn in seen):
            burn(0.002)
            await asyncio.sleep(0)
        is_seen.set()
        holder.join()
        measure.close()
        return seen

    assert max(turn.cpu_s for turn in asyncio.run(beside_a_thread())) < 0.05


def test_answers_of_many_choices_leave_the_loop_free() -> None:
    with running("--engine", "fake") as program, program.client() as client:
        # Several requests, because a full run of the garbage collector happens only now and then.
        for _ in range(12):
            answer = client.post("/v1/completions", json={"model": "fake", "prompt": [[0]] * 1024, "max_tokens": 1})
            assert len(answer.json()["choices"]) == 1024
        assert metric(client, "tokka_event_loop_longest_turn_seconds") <= TURN_BOUND_S

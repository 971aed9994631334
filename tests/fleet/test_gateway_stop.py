"""A gateway that is stopped, and one that is killed and started again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.faults.streams import streaming
from tests.fleet.gateway import Gateway, fake, folder, serving, started, write
from tests.program import eventually


def requests(count: int, tokens: int) -> list[dict[str, object]]:
    return [{"prompt": f"stream {place}", "max_tokens": tokens, "ignore_eos": True} for place in range(count)]


def left(gateway: Gateway) -> list[Path]:
    """Return the files of workers that a gateway has left."""
    return list((gateway.state / "workers").iterdir())


def test_sigterm_lets_streams_finish_and_leaves_nothing() -> None:
    with serving({"m": fake(2)}) as gateway:
        workers = gateway.ready(2)
        with streaming(gateway.program, requests(8, 60)) as streams:
            gateway.program.process.send_signal(signal.SIGTERM)
        assert [stream.terminals() for stream in streams] == [["length"]] * 8
        assert gateway.program.process.wait(10) == 0
        assert not any(worker.runs for worker in workers)
        assert left(gateway) == []
        assert gateway.program.stderr() == ""


def test_drain_ends_the_streams_that_are_left_at_its_timeout() -> None:
    with serving({"m": fake(2)}, "--drain-timeout", "1") as gateway:
        workers = gateway.ready(2)
        with streaming(gateway.program, requests(4, 3000)) as streams:
            began_s = time.monotonic()
            assert gateway.program.stop() == 0
        assert time.monotonic() - began_s < 4
        assert [stream.terminals() for stream in streams] == [["engine_error"]] * 4
        assert not any(worker.runs for worker in workers)
        assert left(gateway) == []


def test_second_sigterm_ends_gateway_and_workers_at_once() -> None:
    with serving({"m": fake(2)}) as gateway:
        workers = gateway.ready(2)
        with streaming(gateway.program, requests(2, 3000)) as streams:
            gateway.program.process.send_signal(signal.SIGTERM)
            gateway.program.wait_for("draining")
            began_s = time.monotonic()
            assert gateway.program.stop() == 1
            assert time.monotonic() - began_s < 1
            eventually(lambda: not any(worker.runs for worker in workers), 2)
        assert all(stream.broken for stream in streams)


def test_killed_gateway_finds_its_workers_again() -> None:
    with folder() as state:
        write(state / "fleet.yaml", {"m": fake(2), "asleep": fake(0)})
        with started(state) as killed:
            before = killed.ready(2)
            with streaming(killed.program, requests(2, 3000)):
                killed.program.process.kill()
        with started(state) as gateway:
            after = gateway.ready(2)
            assert {(one.id, one.pid) for one in after} == {(one.id, one.pid) for one in before}
            assert not gateway.events("worker_starts")
            assert gateway.ask().status_code == 200
            # The streams of the killed gateway do not run on.
            gateway.running(0)
            assert gateway.program.stop() == 0
            assert not any(worker.runs for worker in after)
            assert left(gateway) == []


def test_workers_that_end_without_their_gateway_are_replaced() -> None:
    with folder() as state:
        write(state / "fleet.yaml", {"m": fake(2)})
        with started(state) as killed:
            drains, dies = killed.ready(2)
            killed.program.process.kill()
        os.kill(drains.pid, signal.SIGTERM)
        os.kill(dies.pid, signal.SIGKILL)
        eventually(lambda: not (drains.runs or dies.runs), 10)
        with started(state) as gateway:
            assert not {one.id for one in gateway.ready(2)} & {drains.id, dies.id}

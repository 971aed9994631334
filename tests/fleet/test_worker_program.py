"""`tokka worker` as a program: killed, frozen, stopped, refused, on another host, with a real model."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.engine.contract import EngineContract, ask, collect
from tests.events import Collector
from tests.fleet.gateways import Gateway, gateway, until
from tests.fleet.hosts import HOST, INSIDE, another_host, ip
from tests.fleet.programs import FAKE, WorkerProgram, start_worker, worker_program
from tests.program import free_port
from tokka.core import Sampling, TextDelta
from tokka.engine.base import Engine
from tokka.errors import EngineLost, WorkerDied
from tokka.fleet.remote_worker import RemoteWorker
from tokka.fleet.token_file import ensure_token_file

SLOW = (*FAKE, "--engine-arg", "token_delay_s=0.02")
LONG = Sampling(max_tokens=4000, ignore_eos=True)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as listening:
        yield listening


async def streams(worker: RemoteWorker, count: int) -> list[asyncio.Task[object]]:
    """Start streams on a worker, and return their tasks when each has had a token."""
    sinks = [Collector() for _ in range(count)]
    prepared = [await worker.engine.prepare(ask(sampling=LONG)) for _ in sinks]
    tasks = [asyncio.create_task(one.run(sink)) for one, sink in zip(prepared, sinks, strict=True)]
    await until(lambda: all(sink.events for sink in sinks))
    return tasks  # type: ignore[return-value]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_killed_worker_ends_its_streams_within_a_second(tmp_path: Path, tls: bool) -> None:
    async with (
        gateway(tmp_path, tls=tls) as opened,
        worker_program(opened, *SLOW, "--worker-id", "a") as victim,
        worker_program(opened, *SLOW, "--worker-id", "b"),
    ):
        first = await opened.worker(lambda w: (w.hello.worker, w.state) == ("a", "ready"))
        other = await opened.worker(lambda w: (w.hello.worker, w.state) == ("b", "ready"))
        lost, kept = await streams(first, 6), await streams(other, 6)
        victim.process.kill()
        began_s = time.monotonic()
        ended = await asyncio.gather(*lost, return_exceptions=True)
        assert time.monotonic() - began_s < 1
        # A request may have been the cause: it counts like an engine's death.
        assert {type(error) for error in ended} == {WorkerDied}
        assert first.state == "gone"
        assert not any(task.done() for task in kept)
        for task in kept:
            task.cancel()


async def test_frozen_worker_is_noticed_within_5_seconds(opened: Gateway) -> None:
    async with worker_program(opened, *SLOW) as frozen:
        joined = await opened.ready()
        (stream,) = await streams(joined, 1)
        frozen.process.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        with pytest.raises(EngineLost, match="connection to the engine was lost"):
            await stream
        assert time.monotonic() - began_s < 5.5
        assert joined.state == "gone"
        # It joins again when it goes on, with the same engine.
        frozen.process.send_signal(signal.SIGCONT)
        again = await opened.ready()
        assert again.engine_number == 1
        assert (await collect(again.engine, ask())).usage.completion_tokens == 12


async def test_sigterm_drains_the_worker_and_ends_it_with_0(opened: Gateway) -> None:
    async with worker_program(opened, *SLOW) as program:
        joined = await opened.ready()
        running = asyncio.create_task(collect(joined.engine, ask(sampling=Sampling(max_tokens=50, ignore_eos=True))))
        await until(lambda: joined.engine.stats().unfinished == 1)
        program.process.send_signal(signal.SIGTERM)
        assert (await running).usage.completion_tokens == 50
        assert await program.wait() == 0
        assert program.stderr() == ""


async def test_worker_with_a_wrong_token_ends_with_a_reason(opened: Gateway, tmp_path: Path) -> None:
    ensure_token_file(tmp_path / "other", tls=False)
    async with worker_program(opened, *FAKE, token_file=tmp_path / "other" / "join-token") as program:
        assert await program.wait() == 2
        assert program.stderr().startswith(f"tokka: the gateway at {opened.address} refused this worker: the token")


async def test_worker_with_a_missing_token_file_ends_with_a_reason(opened: Gateway, tmp_path: Path) -> None:
    async with worker_program(opened, *FAKE, token_file=tmp_path / "missing") as program:
        assert await program.wait() != 0
        assert "--join-token-file: cannot read" in program.stderr()


async def test_worker_whose_gateway_is_gone_ends_after_its_timeout(tmp_path: Path) -> None:
    async with gateway(tmp_path) as listening:
        program = start_worker(listening, *FAKE, "--gateway-timeout", "1")
        await listening.ready()
    try:
        assert await program.wait(10) == 1
        assert "no gateway could be reached for 1 s" in program.stderr()
    finally:
        program.end()


async def test_the_token_is_not_in_the_log(opened: Gateway) -> None:
    async with worker_program(opened, *FAKE, "--log-level", "debug") as program:
        await opened.ready()
        program.process.terminate()
        assert await program.wait() == 0
        assert opened.token not in f"{program.events()}{program.stderr()}"


# -- another host


@pytest.fixture
def other_host() -> Iterator[None]:
    with another_host():
        yield


async def test_vanished_host_is_noticed_within_5_seconds(tmp_path: Path, other_host: None) -> None:
    async with gateway(tmp_path, tls=True, host=HOST) as listening, worker_program(listening, *SLOW, prefix=INSIDE):
        joined = await listening.ready()
        (stream,) = await streams(joined, 1)
        ip("link", "set", "tkf0", "down")
        began_s = time.monotonic()
        with pytest.raises(EngineLost):
            await stream
        assert time.monotonic() - began_s < 5.5
        # The cable is back: the worker finds the gateway again, with the same engine.
        ip("link", "set", "tkf0", "up")
        assert (await listening.ready(60)).engine_number == 1


# -- the real engine


@pytest.fixture(scope="module")
def smollm2_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, WorkerProgram]]:
    """A worker with the embedded model, for the gateway of each test: its token's folder and its port."""
    folder, port = tmp_path_factory.mktemp("gateway"), free_port()

    async def started() -> Gateway:
        async with gateway(folder, port=port) as listening:
            return listening

    program = start_worker(asyncio.run(started()))
    yield folder, port, program
    program.end()


@pytest.mark.engine
class TestRealEngine(EngineContract):
    """The embedded model in a worker process. Each test is a new gateway, which the same engine joins."""

    @pytest.fixture
    async def engine(self, smollm2_worker: tuple[Path, int, WorkerProgram]) -> AsyncIterator[Engine]:
        folder, port, _ = smollm2_worker
        async with gateway(folder, port=port) as listening:
            joined = await listening.ready(240)
            assert joined.engine_number == 1
            yield joined.engine

    async def test_deltas_come_one_by_one(self, engine: Engine) -> None:
        result = await collect(engine, ask(sampling=Sampling(max_tokens=12, ignore_eos=True, temperature=0.0)))
        assert sum(isinstance(event, TextDelta) for event in result.events) == 12

"""The worker's side of the wire, against a gateway that is played message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.contract import ask
from tests.fleet.gateways import until
from tests.fleet.raw_gateway import RawGateway, raw_gateway
from tokka import __version__
from tokka.core import Sampling
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.errors import ConfigurationError
from tokka.fleet import gateway_link
from tokka.fleet.worker import Worker
from tokka.protocol.worker import messages
from tokka.protocol.worker.handshake import PROTOCOL, Refusal
from tokka.protocol.worker.requests import open_of


@dataclass
class Played:
    """A worker, its task, and the connections that it opens."""

    worker: Worker
    ending: asyncio.Task[None]
    met: asyncio.Queue[RawGateway]

    async def connection(self) -> RawGateway:
        """Return its next connection, welcomed."""
        gateway = await asyncio.wait_for(self.met.get(), 5)
        await gateway.meet()
        return gateway


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Played]:
    async with raw_gateway(tmp_path) as (options, met):
        worker = Worker(options, lambda: FakeEngine(FakeOptions()))
        ending = asyncio.create_task(worker.run())
        yield Played(worker, ending, met)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)


async def test_hello_names_the_worker(played: Played) -> None:
    gateway = await played.connection()
    assert gateway.hello is not None
    assert (gateway.hello.worker, gateway.hello.model) == ("w1", "fake")
    assert (gateway.hello.version, gateway.hello.protocol) == (__version__, PROTOCOL)


async def test_request_that_crosses_a_drain_is_served(played: Played) -> None:
    gateway = await played.connection()
    await gateway.next(messages.Ready)
    gateway.send(messages.Drain())
    await gateway.next(messages.Draining)
    # The gateway has sent this before it read Draining.
    gateway.send(open_of(1, ask()))
    await gateway.next(messages.Accepted)
    gateway.send(messages.NoMore(), messages.Go(1))
    assert (await gateway.next(messages.Completed)).usage.completion_tokens == 12
    assert (await gateway.next(messages.Bye)).reason == "drained"
    await asyncio.wait_for(played.ending, 5)


async def test_messages_behind_the_welcome_are_read(played: Played) -> None:
    gateway = await asyncio.wait_for(played.met.get(), 5)
    await gateway.meet()
    gateway.send(messages.Drain())
    await gateway.next(messages.Draining)
    gateway.send(messages.NoMore())
    await asyncio.wait_for(played.ending, 5)


async def test_pings_are_answered(played: Played) -> None:
    gateway = await played.connection()
    gateway.send(messages.Ping())
    await gateway.next(messages.Pong)


@pytest.mark.parametrize("data", [(1 << 30).to_bytes(4, "big"), b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x02\x91\x63"])
async def test_gateway_with_a_broken_frame_is_left_and_dialled_again(played: Played, data: bytes) -> None:
    gateway = await played.connection()
    await gateway.next(messages.Ready)
    gateway.send_bytes(data)
    again = await played.connection()
    assert (await again.next(messages.Ready)).engine == 1


async def test_silent_gateway_is_left_and_dialled_again(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_link, "_SILENCE_S", 0.5)
    gateway = await played.connection()
    # A gateway that was frozen reads this when it goes on.
    assert (await gateway.next(messages.Bye)).reason.startswith("the gateway was silent for")
    assert (await (await played.connection()).next(messages.Ready)).engine == 1


async def test_requests_of_a_lost_gateway_stop(played: Played) -> None:
    gateway = await played.connection()
    await gateway.next(messages.Ready)
    gateway.send(open_of(1, ask(sampling=Sampling(max_tokens=4000, ignore_eos=True))))
    await gateway.next(messages.Accepted)
    gateway.send(messages.Go(1))
    await gateway.next(messages.Delta)
    gateway._writer.close()
    await until(lambda: played.worker.open_requests == 0)
    assert not played.ending.done()


async def test_unknown_numbers_change_nothing(played: Played) -> None:
    gateway = await played.connection()
    await gateway.next(messages.Ready)
    gateway.send(messages.Go(7), messages.Abort(8), messages.NoMore())
    gateway.send(messages.Probe(9))
    assert (await gateway.next(messages.Texts)).request == 9


async def test_gateway_that_does_not_read_bounds_the_memory(played: Played) -> None:
    gateway = await played.connection()
    await gateway.next(messages.Ready)
    gateway.send(open_of(1, ask(sampling=Sampling(n=200, max_tokens=4000, ignore_eos=True, logprobs=5))))
    await gateway.next(messages.Accepted)
    gateway.send(messages.Go(1))
    await gateway.next(messages.ScoredDelta)
    (link,) = played.worker._links
    assert link._joined is not None
    connection = link._joined._connection
    await until(lambda: connection.is_full, 10)
    full_bytes = connection._transport.get_write_buffer_size()
    for _ in range(300):
        await asyncio.sleep(0)
    # The engine waits: only the rest of its step follows, of many that it could have made meanwhile.
    assert connection.is_open
    assert connection._transport.get_write_buffer_size() - full_bytes < 4 << 20


async def test_refused_worker_ends_with_the_reason(tmp_path: Path) -> None:
    async with raw_gateway(tmp_path) as (options, met):
        ending = asyncio.create_task(Worker(options, lambda: FakeEngine(FakeOptions())).run())
        await (await met.get()).meet(Refusal("the gateway is Tokka 9.9"))
        with pytest.raises(ConfigurationError, match=r"refused this worker: the gateway is Tokka 9\.9"):
            await asyncio.wait_for(ending, 5)

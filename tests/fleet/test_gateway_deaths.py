"""Workers of a gateway that are killed, frozen or told to end, under streams."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.faults.streams import Stream, streaming
from tests.fleet.gateway import Gateway, fake, serving
from tests.program import eventually, runs

# A frozen worker gets less time to come back.
REJOIN_S = 2


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with two replicas."""
    patches = {"tokka.fleet.controller": f"_REJOIN_S = {REJOIN_S}.0"}
    with serving({"m": fake(2, 2, "prefill_delay_s=0.5", "token_delay_s=0.02")}, patches=patches) as gateway:
        yield gateway


def bodies(count: int, tokens: int, temperature: float = 0) -> list[dict[str, object]]:
    return [
        {"prompt": f"stream {place}", "max_tokens": tokens, "ignore_eos": True, "temperature": temperature}
        for place in range(count)
    ]


def ends(streams: list[Stream]) -> dict[str, int]:
    """Return how often each end occurs. Each stream is complete and has one end."""
    assert all(stream.broken is None and stream.is_closed for stream in streams)
    every = [end for stream in streams for end in stream.terminals()]
    assert len(every) == len(streams)
    return {end: every.count(end) for end in set(every)}


def test_streams_of_a_killed_worker_go_on_elsewhere(gateway: Gateway) -> None:
    victim, other = gateway.ready(2)
    with streaming(gateway.program, bodies(12, 100)) as streams:
        os.kill(victim.pid, signal.SIGKILL)
    assert ends(streams) == {"length": 12}
    # No token is lost, and none comes twice.
    assert len({stream.content for stream in streams}) == 1
    assert other in gateway.ready(2)


def test_killed_worker_ends_sampled_streams_in_a_second(gateway: Gateway) -> None:
    victim, other = gateway.ready(2)
    with streaming(gateway.program, bodies(12, 100, temperature=1)) as streams, ThreadPoolExecutor(4) as pool:
        # These have no token yet when their worker is killed.
        early = [pool.submit(gateway.ask, prompt=f"early {place}") for place in range(4)]
        gateway.running(16)
        os.kill(victim.pid, signal.SIGKILL)
        began_s = time.monotonic()
        answers = [answer.result() for answer in early]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert ends(streams) == {"length": 6, "engine_error": 6}
    died = [stream for stream in streams if stream.terminals() == ["engine_error"]]
    assert max(stream.ended_s for stream in died) - began_s < 1
    # A new worker takes the place of the killed one.
    assert other in gateway.ready(2)


def test_frozen_worker_is_noticed_in_5_s_and_replaced(gateway: Gateway) -> None:
    victim, other = gateway.ready(2)
    frozen = psutil.Process(victim.pid)
    try:
        with streaming(gateway.program, bodies(4, 350, temperature=1)) as streams:
            frozen.suspend()
            began_s = time.monotonic()
            # The others are not held up.
            assert gateway.ask(prompt="meanwhile").status_code == 200
        assert ends(streams) == {"length": 2, "engine_error": 2}
        lost = [stream for stream in streams if stream.terminals() == ["engine_error"]]
        assert max(stream.ended_s for stream in lost) - began_s < 5.5
        gateway.gone(victim)
        assert not runs(frozen)
        assert other in gateway.ready(2)
    finally:
        if frozen.is_running():
            frozen.resume()


def test_worker_told_to_end_finishes_and_is_replaced(gateway: Gateway) -> None:
    victim, other = gateway.ready(2)
    with streaming(gateway.program, bodies(4, 100)) as streams:
        os.kill(victim.pid, signal.SIGTERM)
        eventually(lambda: victim.id not in {one.id for one in gateway.ready(2)}, 20)
        assert not all(stream.ended_s for stream in streams)
    assert ends(streams) == {"length": 4}
    gateway.gone(victim)
    # It is no failure, and the plan has no part in it.
    assert not gateway.events("worker_ended", worker=victim.id, level="error")
    assert not gateway.events("worker_drains")
    assert other in gateway.ready(2)

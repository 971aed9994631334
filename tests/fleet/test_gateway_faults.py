"""A gateway with bad models, bad workers and a key with limits: the requests of others are served meanwhile."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Any

import httpx
import pytest
import yaml

from tests.faults.keys import bearer, tokka
from tests.faults.streams import streaming
from tests.fleet.gateway import Gateway, fake, serving
from tests.program import eventually
from tokka.fleet.token_file import TOKEN_NAME, read_token_file
from tokka.protocol.worker.frames import frame_of
from tokka.protocol.worker.handshake import PROTOCOL, Hello, Refusal, payload_of, reply_of

BROKEN = {
    "unknown": fake(1, 1, "nonsense=1"),
    "missing": {"model": "/nonexistent", "replicas": {"min": 1, "max": 1}},
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with two replicas, and two models whose workers die at each start."""
    with serving({**BROKEN, "m": fake(2)}) as gateway:
        gateway.program.model = "m"
        gateway.ready(2)
        yield gateway


# -- workers that die at each start


def test_model_whose_workers_die_fails_and_waits_longer_each_time(gateway: Gateway) -> None:
    for name, reason in (("unknown", "nonsense: no such option"), ("missing", "/nonexistent does not exist")):
        eventually(lambda name=name: len(gateway.events("worker_ended", model=name)) >= 3, 60)  # type: ignore[misc]
        ends = gateway.events("worker_ended", model=name)
        assert all(reason in line["reason"] and line["level"] == "error" for line in ends)
        starts = gateway.times("worker_starts", model=name)
        waits = [start - end for end, start in zip(gateway.times("worker_ended", model=name), starts[1:], strict=False)]
        assert waits[0] >= 0.9
        assert all(late > early for early, late in pairwise(waits))
        answer = gateway.ask(name)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_starting"
    # The first model of the file does not hold the others up.
    gateway.wait_for("ready", 5)
    with gateway.program.client() as client:
        ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["detail"] == "unknown failed, missing failed"
    assert gateway.ask().status_code == 200


# -- bad workers


def hello(gateway: Gateway, **changes: Any) -> Hello:
    token = read_token_file(gateway.state / TOKEN_NAME).token
    return Hello(**{"token": token, "worker": "bad", "model": "m", "node": "n", "pid": 1, **changes})


def dial(gateway: Gateway) -> socket.socket:
    host, _, port = yaml.safe_load(gateway.file.read_text())["join"].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def answer(gateway: Gateway, said: Hello) -> object:
    """Say hello as a worker, and return the gateway's answer."""
    with dial(gateway) as connection, connection.makefile("rb") as reader:
        connection.sendall(frame_of(payload_of(said)))
        return reply_of(bytearray(reader.read(int.from_bytes(reader.read(4), "big"))))


def test_bad_workers_do_not_touch_streams(gateway: Gateway) -> None:
    bodies = [{"prompt": f"stream {place}", "max_tokens": 100, "ignore_eos": True} for place in range(8)]
    with streaming(gateway.program, bodies) as streams, ExitStack() as flood:
        for bad, reason in (
            (hello(gateway, token="guess"), "token"),
            (hello(gateway, model="other"), "no model other"),
            (hello(gateway, protocol=PROTOCOL + 1, version="9.9.9"), "9.9.9"),
        ):
            reply = answer(gateway, bad)
            assert isinstance(reply, Refusal)
            assert reason in reply.reason
        for frame in (b"GET / HTTP/1.1\r\n\r\n", (1 << 30).to_bytes(4, "big") + bytes(1 << 16), os.urandom(1000)):
            connection = flood.enter_context(dial(gateway))
            with suppress(ConnectionError):
                connection.sendall(frame)
        # A worker that has joined, and goes bad.
        for worker, frame in {"broken": frame_of(b"\x91\x91\x63"), "large": (1 << 30).to_bytes(4, "big")}.items():
            connection = flood.enter_context(dial(gateway))
            connection.sendall(frame_of(payload_of(hello(gateway, worker=worker))))
            gateway.wait_for("worker_joined", worker=worker)
            connection.sendall(frame)
            gateway.wait_for("worker_gone", worker=worker)
        for _ in range(200):
            flood.enter_context(dial(gateway))
        assert not all(stream.ended_s for stream in streams)
    assert [stream.terminals() for stream in streams] == [["length"]] * 8
    assert len(gateway.ready(2)) == 2


# -- limits


def test_limits_of_a_key_hold_over_both_replicas() -> None:
    """Each request takes 2 tokens of its prompt and 10 of its completion."""
    with serving({"m": fake(2)}, "--api-key", "key-0123456789") as gateway:
        gateway.ready(2)
        for limit, amount, allowed in (("--rpm", "7", 7), ("--tpm", "60", 5)):
            secret = tokka(
                "keys", "create", "--name", limit, limit, amount, "--quiet", "--state-dir", str(gateway.state)
            )
            assert sorted(statuses(gateway, secret)) == [200] * allowed + [429] * (20 - allowed)


def statuses(gateway: Gateway, secret: str) -> list[int]:
    """Send 20 requests at once with a new key, and return their statuses."""
    url, head = gateway.program.url, bearer(secret)

    def ask(place: int) -> int:
        body = {"model": "m", "prompt": f"{place:02}", "max_tokens": 10, "ignore_eos": True}
        return httpx.post(f"{url}/v1/completions", json=body, headers=head, timeout=60).status_code

    eventually(lambda: httpx.get(f"{url}/v1/models", headers=head).status_code == 200, 10)
    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(ask, range(20)))

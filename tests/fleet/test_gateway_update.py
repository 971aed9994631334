"""A rolling update under streams and new requests: none is lost, with one replica and with two."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.faults.streams import streaming
from tests.fleet.gateway import Gateway, fake, serving, write
from tests.program import eventually

KEY = "admin-key-0123456789"
STREAMS = [{"prompt": f"stream {place}", "max_tokens": 150, "ignore_eos": True} for place in range(8)]


@contextmanager
def asking(gateway: Gateway) -> Iterator[list[int]]:
    """Send requests one after another, and yield the list of their statuses."""
    statuses: list[int] = []
    ends = threading.Event()

    def ask() -> None:
        while not ends.is_set():
            statuses.append(gateway.ask(prompt=f"new {len(statuses)}").status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        ends.set()
        thread.join()


@contextmanager
def administered(model: dict[str, Any], **keys: Any) -> Iterator[Gateway]:
    with serving({"m": model}, "--admin-key", KEY, **keys) as gateway:
        gateway.key = KEY
        yield gateway


def update(gateway: Gateway, model: dict[str, Any], *arguments: str, **keys: Any) -> None:
    """Give the model these engine arguments."""
    model["settings"]["engine_arg"] = list(arguments)
    write(gateway.file, {"m": model}, **keys)
    with gateway.program.client() as client:
        answer = client.post("/admin/fleet/update", headers={"authorization": f"Bearer {KEY}"})
    assert answer.json() == {"replaced": ["m"]}


@pytest.mark.parametrize(
    ("replicas", "memory"), [(1, "300MiB"), (2, "300MiB"), (2, "500MiB")], ids=["one", "two", "two-without-room"]
)
def test_rolling_update_loses_no_request(replicas: int, memory: str) -> None:
    """Without room for a third replica, an old one ends before its successor starts."""
    model, local = fake(replicas, resources={"memory": memory}), {"memory": "1GiB"}
    with administered(model, local=local) as gateway:
        old = gateway.ready(replicas)
        with streaming(gateway.program, STREAMS, KEY) as streams, asking(gateway) as statuses:
            update(gateway, model, "step_s=0.02", "max_running=99", local=local)
            for worker in old:
                gateway.gone(worker)
            new = gateway.ready(replicas)
        assert [stream.terminals() for stream in streams] == [["length"]] * 8
        assert set(statuses) == {200}
        assert not {one.id for one in new} & {one.id for one in old}
        assert len(gateway.events("worker_starts")) == 2 * replicas
        eventually(lambda: len(gateway.workers()) == replicas, 10)


def test_update_to_a_model_that_does_not_start_keeps_the_old_one() -> None:
    model = fake(1)
    with administered(model) as gateway:
        (old,) = gateway.ready()
        update(gateway, model, "nonsense=1")
        eventually(lambda: len(gateway.events("worker_ended", level="error")) >= 2, 30)
        assert gateway.ask().status_code == 200
        assert gateway.ready() == [old]

"""A rolling update under streams and new requests: none is lost, with one replica and with two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.faults.streams import streaming
from tests.fleet.gateway import Gateway, fake, serving, write
from tests.program import eventually

# The gateway reads its file again on a signal.
PATCH = """
def _open(self, opened=Fleet.open):
    import signal
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(self, "updating", loop.create_task(self.update())))
    opened(self)
Fleet.open = _open
"""
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


def update(gateway: Gateway, model: dict[str, Any]) -> None:
    write(gateway.file, {"m": model}, **KEYS)
    gateway.program.process.send_signal(signal.SIGUSR1)


KEYS: dict[str, Any] = {"local": {"memory": "1GiB"}}


@pytest.mark.parametrize(
    ("replicas", "memory"), [(1, "300MiB"), (2, "300MiB"), (2, "500MiB")], ids=["one", "two", "two-without-room"]
)
def test_rolling_update_loses_no_request(replicas: int, memory: str) -> None:
    """Without room for a third replica, an old one ends before its successor starts."""
    model = fake(replicas, resources={"memory": memory})
    with serving({"m": model}, patches={"tokka.fleet.fleet": PATCH}, **KEYS) as gateway:
        old = gateway.ready(replicas)
        with streaming(gateway.program, STREAMS) as streams, asking(gateway) as statuses:
            model["settings"]["engine_arg"] = ["step_s=0.02", "max_running=99"]
            update(gateway, model)
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
    with serving({"m": model}, patches={"tokka.fleet.fleet": PATCH}) as gateway:
        (old,) = gateway.ready()
        model["settings"]["engine_arg"] = ["nonsense=1"]
        write(gateway.file, {"m": model})
        gateway.program.process.send_signal(signal.SIGUSR1)
        eventually(lambda: len(gateway.events("worker_ended", level="error")) >= 2, 30)
        assert gateway.ask().status_code == 200
        assert gateway.ready() == [old]

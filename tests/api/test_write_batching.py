"""Writes of one event loop iteration are sent together, in their order, before the connection is closed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tokka.api.write_batching import BatchedTransport, WriteBatch


class Transport:
    """A transport that records its calls in a list shared with other transports."""

    def __init__(self, name: str, done: list[tuple[Any, ...]]) -> None:
        self._name = name
        self._done = done

    def __getattr__(self, action: str) -> Any:
        return lambda *given: self._done.append((f"{self._name} {action}", *given))

    def get_write_buffer_size(self) -> int:
        return 100

    def is_closing(self) -> bool:
        return False


class Lost(Transport):
    """A transport that its client has left. A write raises, as in uvloop."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        raise RuntimeError("the handler is closed")


def batched(*names: str) -> tuple[list[tuple[Any, ...]], list[BatchedTransport]]:
    done: list[tuple[Any, ...]] = []
    batch = WriteBatch()
    return done, [BatchedTransport(Transport(name, done), batch) for name in names]  # type: ignore[arg-type]


async def turn() -> None:
    """Let the ready callbacks run, and the callbacks that they schedule."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_transport_joins_the_writes_of_one_loop_turn() -> None:
    done, (one, two) = batched("one", "two")
    one.write(b"head ")
    two.write(b"other")
    one.write(b"body")
    assert done == []
    await turn()
    assert done == [("one write", b"head body"), ("two write", b"other")]
    one.write(b"more")
    await turn()
    assert done[2:] == [("one write", b"more")]


async def test_tasks_that_are_woken_together_write_together() -> None:
    done, transports = batched(*"abcd")
    woken = asyncio.Event()
    seen = []

    async def stream(transport: BatchedTransport) -> None:
        await woken.wait()
        seen.append(len(done))
        transport.write(b"token")

    async with asyncio.TaskGroup() as tasks:
        for transport in transports:
            tasks.create_task(stream(transport))
        await turn()
        woken.set()
    await turn()
    assert seen == [0, 0, 0, 0]
    assert [what for what, _ in done] == ["a write", "b write", "c write", "d write"]


@pytest.mark.parametrize("ending", ["close", "write_eof"])
async def test_transport_flushes_before_it_closes(ending: str) -> None:
    done, (transport,) = batched("t")
    transport.write(b"last words")
    getattr(transport, ending)()
    await turn()
    assert done == [("t write", b"last words"), (f"t {ending}",)]


async def test_nothing_is_written_behind_an_abort() -> None:
    done, (transport,) = batched("t")
    transport.write(b"too late")
    transport.abort()
    await turn()
    assert done == [("t abort",)]


async def test_write_buffer_size_counts_batched_bytes() -> None:
    _, (transport,) = batched("t")
    transport.write(b"12345")
    assert transport.get_write_buffer_size() == 105
    await turn()
    assert transport.get_write_buffer_size() == 100


async def test_large_writes_do_not_wait_for_the_end_of_the_turn() -> None:
    done, (transport,) = batched("t")
    for _ in range(3):
        transport.write(b"x" * 40_000)
    # Above the limit, the transport gets the bytes at once, so that it can pause the writer.
    assert done == [("t write", b"x" * 80_000)]
    assert transport.get_write_buffer_size() == 40_100
    await turn()
    assert done[1:] == [("t write", b"x" * 40_000)]


async def test_a_connection_that_is_lost_keeps_back_nothing_of_others() -> None:
    done, (other,) = batched("other")
    lost = BatchedTransport(Lost("lost", done), other._batch)  # type: ignore[arg-type]
    lost.write(b"token")
    other.write(b"token")
    await turn()
    assert done == [("other write", b"token")]

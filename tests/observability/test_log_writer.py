"""Log lines are written in order, never delay the server, and are counted when they are lost."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import tokka.observability.log_writer
from tests.program import eventually
from tokka.observability.log_writer import LineWriter


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def read_all(read: int, size: int) -> bytes:
    received = b""
    while len(received) < size:
        received += os.read(read, 65536)
    return received


def test_lines_are_written_in_their_order(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = LineWriter(write)
    written = [f"{number}\n" for number in range(1000)]
    for line in written:
        lines.write(line)
    assert read_all(read, len("".join(written))).decode() == "".join(written)
    lines.finish()
    assert lines.dropped == 0


def test_writer_counts_lines_dropped_by_a_full_queue(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokka.observability.log_writer, "_MAX_QUEUED_BYTES", 1000)
    read, write = pipe
    lines = LineWriter(write)
    for _ in range(2000):
        lines.write("x" * 99 + "\n")
    assert lines.dropped > 0
    received = b""

    def all_is_written() -> bool:
        nonlocal received
        received += os.read(read, 65536)
        return received.count(b"\n") + lines.dropped == 2000

    eventually(all_is_written, within_s=10)
    lines.finish()


def test_a_file_that_takes_nothing_loses_all() -> None:
    with open("/dev/full", "wb") as full:
        lines = LineWriter(full.fileno())
        for _ in range(10):
            lines.write("x\n")
        lines.finish()
        assert lines.dropped == 10


def test_the_end_does_not_wait_for_a_reader_that_never_comes(pipe: tuple[int, int]) -> None:
    read, write = pipe
    lines = LineWriter(write)
    lines.write("x" * 1_000_000 + "\n")
    lines.finish(within_s=0.05)
    # The pipe is full, and the line is still being written.
    assert len(read_all(read, 1_000_001)) == 1_000_001

"""Rounds of a comparison: the order of the servers, and the CPU time and memory of their processes."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from benchmarks.faults.servers import Server
from benchmarks.load.ratios import Line
from benchmarks.load.rounds import Experiment, Subject, cpu_s, measured, options_of, order_of


@pytest.fixture
def first() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"started\n")
        assert process.stdout.readline() == b"started\n"
        yield process
        process.kill()


def one_load(subject: Subject, seed: int) -> Iterator[tuple[str, Line]]:
    yield "x1", {"seed": seed}


def test_each_round_starts_with_another_server() -> None:
    kinds = ["tokka", "vllm", "vllm-rust"]
    assert [order_of(kinds, place)[0] for place in range(4)] == ["tokka", "vllm", "vllm-rust", "tokka"]
    assert order_of(kinds, 1) == ["vllm", "vllm-rust", "tokka"]


def test_cpu_time_includes_threads_that_ended() -> None:
    thread = threading.Thread(target=sum, args=(range(100_000),))
    thread.start()
    thread.join()
    # Both clocks count the whole process, so that the figure lies between two readings of the other clock.
    before_s, found_s, after_s = time.process_time(), cpu_s(os.getpid()), time.process_time()
    assert before_s <= found_s <= after_s


def test_launcher_is_measured_apart_from_the_front_end(first: subprocess.Popen[bytes]) -> None:
    subject = Subject(Server(first, "http://127.0.0.1:1", []), psutil.Process())
    lines = list(measured(subject, Experiment(one_load, ()), seed=3))
    assert [label for label, _ in lines] == ["x1", ""]
    assert lines[0][1]["seed"] == 3
    # The first process has waited, and this one has not.
    assert lines[0][1]["launcher_cpu_s"] == 0
    assert lines[1][1]["front_memory_mb"] > lines[1][1]["memory_mb"] > 0


def test_server_without_a_launcher_has_no_figure_of_it(first: subprocess.Popen[bytes]) -> None:
    subject = Subject(Server(first, "http://127.0.0.1:1", []), psutil.Process(first.pid))
    lines = list(measured(subject, Experiment(one_load, ()), seed=3))
    assert lines[0] == ("x1", {"seed": 3})


def test_all_servers_get_the_common_options() -> None:
    experiment = Experiment(one_load, ("vllm",), ("--enforce-eager",), ("--max-model-len", "8192"))
    assert options_of("tokka", experiment)[2:] == ("--max-model-len", "8192", "--enforce-eager")
    assert options_of("vllm", experiment)[-2:] == ("--max-model-len", "8192")

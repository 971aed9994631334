"""One load of the comparison with vLLM's servers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import psutil
import pytest
from benchmarks.faults.servers import Server
from benchmarks.load.ratios import Line
from benchmarks.load.rounds import Subject
from benchmarks.load.versus import Load, measure

from tests.bench.scripted import Answer, Seen, at_once, scripted

PLAIN = b'{"choices":[{"finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}'


async def plain(_: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(PLAIN) + PLAIN)


async def figures_of(answer: Answer, load: Load, front: int, *, first_pid: int) -> Line:
    async with scripted(answer) as seen:
        process = cast("subprocess.Popen[bytes]", SimpleNamespace(pid=first_pid))
        subject = Subject(Server(process, seen.url, []), psutil.Process(front))
        return await asyncio.to_thread(measure, subject, load, 1, 0.4)


@pytest.fixture
def idle() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process without children. Those of the tests may end at any time."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process


async def test_streamed_load_has_cpu_for_each_token_only() -> None:
    streamed = await figures_of(at_once, Load(1, 2), os.getpid(), first_pid=1)
    assert streamed["front_cpu_us_per_token"] > 0
    assert "front_cpu_ms_per_request" not in streamed
    whole = await figures_of(plain, Load(1, 2, stream=False), os.getpid(), first_pid=1)
    assert whole["front_cpu_ms_per_request"] > 0


async def test_cpu_below_the_front_end_is_left_out_of_a_launched_one(idle: subprocess.Popen[bytes]) -> None:
    launched = await figures_of(at_once, Load(1, 2), idle.pid, first_pid=1)
    assert launched["cpu_s"].keys() == {"client", "front"}
    assert "server_cpu_us_per_token" not in launched
    alone = await figures_of(at_once, Load(1, 2), idle.pid, first_pid=idle.pid)
    assert alone["cpu_s"].keys() == {"client", "front", "server", "others"}
    assert "server_cpu_us_per_token" in alone


async def test_launched_front_end_has_figures_after_a_child_ended() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=subprocess.PIPE)

    async def end(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await at_once(seen, writer)
        if child.returncode is None:
            child.kill()
            await child.wait()

    launched = await figures_of(end, Load(1, 2), os.getpid(), first_pid=1)
    assert launched["cpu_s"].keys() == {"client", "front"}

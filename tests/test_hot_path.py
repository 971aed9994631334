"""The server's own cost of a streamed token must not grow.

The tests take two measures with the scripted engine, in this process. The number of bytecodes is the same on every
machine and in every run. CPU time, relative to a loop of similar work, also includes the work of libraries. A change
that is worth a higher cost records its own figures here, and its commit gives the reason.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FrameType
from typing import Any

import orjson
import pytest
from starlette.types import Message

from tests.contract.conftest import serving
from tokka.app import Server
from tokka.engine.fake import FakeOptions

pytestmark = pytest.mark.bytecodes

STREAMS = 32
# Bytecodes per token, and CPU time per token in turns of the loop below. Recorded on 27 November 2026.
RECORDED_BYTECODES = 722.0
RECORDED_TURNS = 4.8
MOST_GROWTH = 1.15
ROUNDS = 9


class Wire:
    """A wire to a client that reads everything at once. Counts the bytes."""

    is_full = False
    sent = 0

    def write(self, data: bytes) -> None:
        self.sent += len(data)

    async def drain(self) -> None:
        pass

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        pass


async def stream(server: Server, tokens: int) -> int:
    """Run one streamed chat through the whole application; return the number of bytes that it sent."""
    body = {"model": server.replicas.info and "fake", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    raw = json.dumps({**body, "max_completion_tokens": tokens, "ignore_eos": True}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    wire = Wire()
    scope: dict[str, Any] = {
        "type": "http",
        "state": {"wire": wire},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
    }
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            # The client stays connected.
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200

    await server.app(scope, receive, send)
    return wire.sent


async def streams(server: Server, tokens: int) -> None:
    sent = await asyncio.gather(*(stream(server, tokens) for _ in range(STREAMS)))
    assert min(sent) > tokens * 100


async def turns(count: int) -> None:
    """Do the least work of any server in each turn: wake a task, advance a generator, write a chunk."""

    async def steps() -> AsyncIterator[dict[str, Any]]:
        for number in range(count):
            await asyncio.sleep(0)
            yield {"id": "x", "choices": [{"index": 0, "delta": {"content": str(number)}}]}

    async def read() -> int:
        return sum([len(b"data: " + orjson.dumps(chunk) + b"\n\n") async for chunk in steps()])

    await asyncio.gather(*(read() for _ in range(STREAMS)))


async def cpu_s(work: Callable[[], Awaitable[None]]) -> float:
    began_s = time.thread_time()
    await work()
    return time.thread_time() - began_s


async def bytecodes(work: Callable[[], Awaitable[None]]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await work()
    finally:
        sys.settrace(before)
    return count


async def test_a_streamed_token_takes_no_more_bytecodes_than_recorded() -> None:
    async with serving(FakeOptions()) as server:
        await streams(server, 50)
        few = await bytecodes(lambda: streams(server, 50))
        many = await bytecodes(lambda: streams(server, 100))
    for_a_token = (many - few) / (50 * STREAMS)
    assert for_a_token <= RECORDED_BYTECODES * MOST_GROWTH, f"{for_a_token:.0f} bytecodes for a token"


async def test_a_streamed_token_takes_no_more_time_than_recorded() -> None:
    async with serving(FakeOptions()) as server:
        await streams(server, 50)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(await cpu_s(lambda: streams(server, 100)) / (100 * STREAMS))
            theirs.append(await cpu_s(lambda: turns(100)) / (100 * STREAMS))
    # The fastest round of each, since other programs on the machine only add time.
    ratio = min(ours) / min(theirs)
    assert ratio <= RECORDED_TURNS * MOST_GROWTH, f"{min(ours) * 1e6:.1f} us for a token: {ratio:.2f} turns"

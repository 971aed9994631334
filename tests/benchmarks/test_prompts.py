"""Conversations of the comparison with long prompts."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import cast

import psutil
import pytest
from benchmarks.faults.servers import Server
from benchmarks.load.prompts import turns
from benchmarks.load.rounds import Subject

from tests.bench.records import HEAD, chunked
from tests.bench.scripted import Seen, finish, scripted, text


def subject_at(url: str) -> Subject:
    return Subject(Server(cast("subprocess.Popen[bytes]", None), url, []), psutil.Process())


async def numbered(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer with the number of the request, in two events."""
    writer.write(HEAD + chunked(text("reply "), text(str(len(seen.bodies)))) + finish(tokens=8))


async def refusing(_: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull")


async def test_second_turn_continues_each_conversation() -> None:
    async with scripted(numbered) as seen:
        lines = await asyncio.to_thread(list, turns(subject_at(seen.url), words=5, count=2, seed=1))
        conversations = [json.loads(body)["messages"] for body in seen.bodies]
    first, other, first_again, other_again = conversations
    assert first != other
    assert first_again[:2] == [*first, {"role": "assistant", "content": "reply 1"}]
    assert other_again[:2] == [*other, {"role": "assistant", "content": "reply 2"}]
    assert [message["role"] for message in first_again] == ["user", "assistant", "user"]
    assert len(first[0]["content"].split()) == 5
    assert [label for label, _ in lines] == ["5 words, turn 1", "5 words, turn 2"]
    for _, figures in lines:
        assert (figures["requests"], figures["prompt_tokens_mean"]) == (2, 9)
        assert 0 < figures["ttft_s"]["p50"] <= figures["ttft_s"]["p90"]
        assert figures["front_cpu_ms_per_request"] > 0


async def test_all_servers_get_the_same_messages_in_a_round() -> None:
    async with scripted(numbered) as seen:
        for seed in (1, 1, 2):
            await asyncio.to_thread(list, turns(subject_at(seen.url), words=5, count=1, seed=seed))
        openings = [json.loads(body)["messages"][0] for body in seen.bodies[::2]]
    assert openings[0] == openings[1] != openings[2]


async def test_refused_request_ends_the_measurement() -> None:
    async with scripted(refusing) as seen:
        with pytest.raises(RuntimeError, match="refused: 503"):
            await asyncio.to_thread(list, turns(subject_at(seen.url), words=5, count=1, seed=1))

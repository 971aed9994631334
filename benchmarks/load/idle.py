"""Measure the cost of a thousand slow streams: memory per stream, and delay of other requests.

    scripts/bench streams --out docs/benchmarks/streams.jsonl

The scripted engine gives each stream a token a second. A client sends one short request after the other, with and
without the streams; the difference is the delay that the streams add.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.program import Program, running

from tokka.bench.figures import percentile

QUESTIONS = 400
ENGINE = ("--engine", "fake", "--engine-arg", "token_delay_s=1", "--engine-arg", "max_running=4096")


def body(model: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": "Hi", "max_tokens": tokens, "ignore_eos": True, "stream": True}


async def questions_s(program: Program) -> list[float]:
    """Return the seconds that each of 400 requests took. The engine has no part in them."""
    took: list[float] = []
    async with httpx.AsyncClient(base_url=program.url, timeout=30) as client:
        for _ in range(QUESTIONS):
            began_s = time.monotonic()
            (
                await client.post("/tokenize", json={"model": program.model, "prompt": "How long does it take?"})
            ).raise_for_status()
            took.append(time.monotonic() - began_s)
            await asyncio.sleep(0.01)
    return took


async def opened(program: Program, count: int) -> list[asyncio.StreamWriter]:
    """Open streams and wait for the response headers of each; the kernel's buffers take the rest."""
    port = int(program.url.rsplit(":", 1)[1])
    content = json.dumps(body(program.model, 3600)).encode()
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    head = f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n\r\n"
    writers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + content)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writers.append(writer)
    return writers


async def measure(program: Program, count: int) -> dict[str, Any]:
    process = psutil.Process(program.process.pid)
    await questions_s(program)
    before_s, memory = await questions_s(program), process.memory_info().rss
    streams = await opened(program, count)
    # Wait until each stream has had some tokens.
    await asyncio.sleep(3)
    grown = process.memory_info().rss - memory
    with_s = await questions_s(program)
    for writer in streams:
        writer.close()
    figures = {"streams": count, "kb_per_stream": round(grown / count / 1e3, 1)}
    for name, took in (("without", before_s), ("with", with_s)):
        figures |= {f"{name}_p50_ms": ms(took, 50), f"{name}_p99_ms": ms(took, 99)}
    return figures


def ms(took: Sequence[float], percent: float) -> float:
    return round((percentile(took, percent) or 0.0) * 1e3, 2)


def streams(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="added to, if it is there")
    chosen = parser.parse_args(arguments)
    for _ in range(chosen.rounds):
        with running(*ENGINE) as program:
            figures = asyncio.run(measure(program, chosen.streams))
        line = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **figures}
        with chosen.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

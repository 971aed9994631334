"""Measure the cost of many slow streams: memory per stream, delay of other requests, longest turn of the event loop.

    scripts/bench streams --out docs/benchmarks/streams.jsonl
    scripts/bench streams --streams 9900 --every 25 --rounds 1 --out docs/benchmarks/streams.jsonl

The scripted engine gives each stream a token every `--every` seconds, and a stream without one for five seconds gets a
keep-alive comment. A client sends one short request after the other, with and
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
from tests.wire import metric

from tokka.bench.figures import percentile

QUESTIONS = 400
# Connections that are opened at once. More would overflow the listener's backlog.
AT_ONCE = 64


def options(count: int, every_s: float) -> list[str]:
    engine = ["--engine", "fake", "--engine-arg", f"token_delay_s={every_s}", "--engine-arg", f"max_running={count}"]
    return [*engine, "--keep-alive-interval", "5", "--max-connections", str(count + 100)]


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

    async def one() -> asyncio.StreamWriter:
        # A small buffer: nothing is read after the headers.
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(head.encode() + content)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        return writer

    writers: list[asyncio.StreamWriter] = []
    while len(writers) < count:
        writers += await asyncio.gather(*(one() for _ in range(min(AT_ONCE, count - len(writers)))))
    return writers


async def measure(program: Program, count: int, every_s: float) -> dict[str, Any]:
    process = psutil.Process(program.process.pid)
    await questions_s(program)
    before_s, memory = await questions_s(program), process.memory_info().rss
    streams = await opened(program, count)
    # Wait until each stream has had a token, or some if they come fast.
    await asyncio.sleep(every_s + 2)
    grown = process.memory_info().rss - memory
    with_s = await questions_s(program)
    turn_s = await asyncio.to_thread(longest_turn_s, program)
    for writer in streams:
        writer.close()
    figures = {"streams": count, "kb_per_stream": round(grown / count / 1e3, 1), "longest_turn_s": round(turn_s, 3)}
    for name, took in (("without", before_s), ("with", with_s)):
        figures |= {f"{name}_p50_ms": ms(took, 50), f"{name}_p99_ms": ms(took, 99)}
    return figures


def longest_turn_s(program: Program) -> float:
    """Return the longest turn of the server's event loop since its start, in seconds of CPU."""
    with httpx.Client(base_url=program.url, timeout=30) as client:
        return metric(client, "tokka_event_loop_longest_turn_seconds")


def ms(took: Sequence[float], percent: float) -> float:
    return round((percentile(took, percent) or 0.0) * 1e3, 2)


def streams(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two tokens of a stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="added to, if it is there")
    chosen = parser.parse_args(arguments)
    for _ in range(chosen.rounds):
        with running(*options(chosen.streams, chosen.every)) as program:
            figures = asyncio.run(measure(program, chosen.streams, chosen.every))
        line = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "every_s": chosen.every, **figures}
        with chosen.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

"""Compare the front ends for long prompts: Tokka, vLLM's Python server and vLLM's Rust front end, in turns.

    scripts/bench prompts --rounds 3 --rust-frontend vllm/vllm-rs --out docs/benchmarks/prompts.jsonl

Model and engine are those of `scripts/bench front`. One user holds conversations whose first message has 20, 2,000 or
20,000 words of one token each. Turn 1 sends this message. Turn 2 sends the same conversation again with the completion
and a short message, so that the engine finds most of its prompt in the prefix cache. All servers get the same messages
in a round.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from tests.wire import chunks_of

from benchmarks.faults.servers import NAME
from benchmarks.load.ratios import Line
from benchmarks.load.rounds import CONTEXT, Experiment, Subject, add_rust, cpu_s, go, parser_of, tiny_model
from benchmarks.load.versus import FRONT_RIVALS, LIKE_VLLM
from tokka.bench.address import address_of
from tokka.bench.connection import Answer, Pool, body_pieces
from tokka.bench.figures import percentiles
from tokka.bench.prompts import synthetic
from tokka.bench.record import Record

Messages = list[dict[str, str]]
# Words of the first message, and conversations of this size.
SIZES = {20: 40, 2_000: 40, 20_000: 12}
# Words of the second message.
NEXT_WORDS = 20
# Tokens of each completion. Few, so that the prompt makes most of the cost.
COMPLETION_TOKENS = 8
WARM_UP_CONVERSATIONS = 2


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion, and its request's figures."""

    text: str
    ttft_s: float
    prompt_tokens: int


def message(words: int, chance: random.Random) -> dict[str, str]:
    return {"role": "user", "content": synthetic(words, chance)["prompt"]}


def continued(messages: Messages, completion: str, chance: random.Random) -> Messages:
    """Return the conversation of the next turn."""
    return [*messages, {"role": "assistant", "content": completion}, message(NEXT_WORDS, chance)]


def request(netloc: str, messages: Messages) -> bytes:
    fields: dict[str, Any] = {"max_tokens": COMPLETION_TOKENS, "ignore_eos": True, "temperature": 0}
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    body = orjson.dumps({"model": NAME, "messages": messages, **fields})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def asked(pool: Pool, netloc: str, messages: Messages) -> Reply:
    content, answer = request(netloc, messages), Answer()
    record = Record("all", time.monotonic())
    await pool.exchange(content, answer)
    record.read(answer, 0)
    if record.outcome != "completed" or record.ttft_s is None:
        raise RuntimeError(f"a request has {record.outcome}: {record.status} {record.code} {record.message}")
    text = b"".join(piece for _, piece in body_pieces(answer)[1]).decode()
    choices = [choice for chunk in chunks_of(text) for choice in chunk["choices"]]
    completion = "".join(choice["delta"].get("content") or "" for choice in choices)
    return Reply(completion, record.ttft_s, record.prompt_tokens)


async def turn(subject: Subject, conversations: Sequence[Messages]) -> tuple[list[Reply], Line]:
    """Send the conversations one after the other; return the replies, and the figures of the turn."""
    address = address_of(subject.server.url)
    pool = Pool(address, most=1, reuse=True)
    try:
        before_s = cpu_s(subject.front.pid)
        replies = [await asked(pool, address.netloc, messages) for messages in conversations]
        used_s = cpu_s(subject.front.pid) - before_s
    finally:
        await pool.close()
    return replies, {
        "requests": len(replies),
        "prompt_tokens_mean": round(statistics.mean(reply.prompt_tokens for reply in replies), 1),
        "ttft_s": percentiles([reply.ttft_s for reply in replies], 50, 90),
        "front_cpu_ms_per_request": round(used_s * 1e3 / len(replies), 3),
    }


def turns(subject: Subject, words: int, count: int, seed: int) -> Iterator[tuple[str, Line]]:
    """Yield the figures of both turns of some conversations."""
    chance = random.Random(f"{seed} {words}")
    conversations = [[message(words, chance)] for _ in range(count)]
    replies, figures = asyncio.run(turn(subject, conversations))
    yield f"{words:,} words, turn 1", figures
    longer = [continued(messages, reply.text, chance) for messages, reply in zip(conversations, replies, strict=True)]
    yield f"{words:,} words, turn 2", asyncio.run(turn(subject, longer))[1]


def measure(sizes: dict[int, int], subject: Subject, seed: int) -> Iterator[tuple[str, Line]]:
    for words in sizes:
        for _ in turns(subject, words, WARM_UP_CONVERSATIONS, -1):
            pass
    for words, count in sizes.items():
        yield from turns(subject, words, count, seed)


def prompts(arguments: Sequence[str]) -> None:
    parser = parser_of(__doc__)
    add_rust(parser)
    chosen = parser.parse_args(arguments)
    common = ("--max-model-len", str(CONTEXT))
    go(Experiment(partial(measure, SIZES), FRONT_RIVALS, LIKE_VLLM, common), tiny_model(), chosen)

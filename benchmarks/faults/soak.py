"""Random faults under load, then an audit: each request has one outcome, the same for its client, log and metrics.

`scripts/soak --hours 2` runs it by hand; the tests run it for a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from tests.program import Program, eventually, running
from tests.wire import chunks_of, metric, raw_completion

CLIENTS = 12
RECOVERY_S = 60.0
# Seconds between two faults of the engine. If deaths follow sooner, each engine restart waits longer.
FAULT_EVERY_S = (12.0, 20.0)
OPTIONS = ("--stall-timeout", "4", "--max-quick-deaths", "1000", "--write-timeout", "2", "--body-timeout", "1")


@dataclass
class Books:
    """How each request ended for its client: an outcome, or None if the client left; problems; engine faults."""

    ends: dict[str, str | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    engine_faults: Counter[str] = field(default_factory=Counter)

    def outcomes(self) -> Counter[str]:
        return Counter(end or "client left" for end in self.ends.values())


def outcome_of(status: int, text: str, streamed: bool) -> str:
    """Return the outcome that a response declares. Raises ValueError if it declares none or several."""
    if status != 200:
        json.loads(text)["error"]["code"]
        return {503: "rejected", 504: "timeout", 500: "error"}.get(status, "invalid")
    if not streamed:
        return _end_of(json.loads(text)["choices"][0])
    if not text.endswith("data: [DONE]\n\n") or text.count("[DONE]") != 1:
        raise ValueError(f"no proper end: ...{text[-200:]}")
    chunks = chunks_of(text)
    ends = ["error" for chunk in chunks if "error" in chunk]
    ends += [_end_of(choice) for chunk in chunks for choice in chunk.get("choices", ()) if choice["finish_reason"]]
    if len(ends) != 1:
        raise ValueError(f"{len(ends)} ends: {ends}")
    return ends[0]


def _end_of(choice: dict[str, Any]) -> str:
    reason: str = choice["finish_reason"]
    return "timeout" if choice["stop_reason"] == "timeout" else reason


class Soak:
    """One run: its clients, the task that breaks the engine, and the books."""

    def __init__(self, program: Program, seconds: float, seed: int, fault_every_s: tuple[float, float]) -> None:
        self.books = Books()
        self._program = program
        self._ends_s = time.monotonic() + seconds
        self._random = random.Random(seed)
        self._fault_every_s = fault_every_s
        self._count = 0

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._program.url, timeout=120, limits=limits) as client:
            await asyncio.gather(self._break_the_engine(client), *(self._client(client) for _ in range(CLIENTS)))

    async def _client(self, client: httpx.AsyncClient) -> None:
        kinds: list[tuple[int, Callable[[httpx.AsyncClient, str], Awaitable[str | None]]]] = [
            (8, self._stream),
            (4, self._plain),
            (2, self._leave_midway),
            (1, self._short_of_time),
            (1, self._malformed),
            (1, self._never_read),
            (1, self._half_a_body),
        ]
        while time.monotonic() < self._ends_s:
            self._count += 1
            request_id = f"soak-{self._count}"
            act = self._random.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])[0]
            try:
                end = await act(client, request_id)
            except (ValueError, KeyError, httpx.HTTPError) as error:
                self.books.problems.append(f"{request_id} {act.__name__}: {error!r}")
                end = None
            self.books.ends[request_id] = end
            # A real client would wait for the Retry-After.
            if end == "rejected":
                await asyncio.sleep(0.2)

    def _body(self, request_id: str, **fields: Any) -> dict[str, Any]:
        # All prompts differ: the server rightly refuses a prompt that ran in two engine deaths.
        sizes = {"max_tokens": self._random.randint(1, 80), "ignore_eos": self._random.random() < 0.5}
        return {"model": self._program.model, "prompt": f"{request_id}: once upon a time", **sizes, **fields}

    async def _plain(self, client: httpx.AsyncClient, request_id: str, **fields: Any) -> str | None:
        body = self._body(request_id, **fields)
        answer = await client.post("/v1/completions", json=body, headers={"x-request-id": request_id})
        return outcome_of(answer.status_code, answer.text, streamed=False)

    async def _stream(self, client: httpx.AsyncClient, request_id: str) -> str | None:
        body = self._body(request_id, stream=True)
        answer = await client.post("/v1/completions", json=body, headers={"x-request-id": request_id})
        return outcome_of(answer.status_code, answer.text, streamed=True)

    async def _short_of_time(self, client: httpx.AsyncClient, request_id: str) -> str | None:
        return await self._plain(client, request_id, max_tokens=2000, ignore_eos=True, timeout=0.3)

    async def _malformed(self, client: httpx.AsyncClient, request_id: str) -> str | None:
        return await self._plain(client, request_id, temperature="hot")

    async def _leave_midway(self, client: httpx.AsyncClient, request_id: str) -> str | None:
        body = self._body(request_id, stream=True, max_tokens=2000, ignore_eos=True)
        headers = {"x-request-id": request_id}
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
            async for _ in answer.aiter_raw():
                break
        return None

    async def _never_read(self, client: httpx.AsyncClient, request_id: str) -> str | None:
        await self._raw(
            self._body(request_id, stream=True, max_tokens=8000, ignore_eos=True, n=4), request_id, whole=True
        )
        return None

    async def _half_a_body(self, client: httpx.AsyncClient, request_id: str) -> str | None:
        return "invalid" if await self._raw(self._body(request_id), request_id, whole=False) else None

    async def _raw(self, body: dict[str, Any], request_id: str, *, whole: bool) -> bytes:
        """Send raw bytes. If `whole`, read no response; otherwise omit the end of the body and return the response."""
        url = httpx.URL(self._program.url)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=4096)
        request = raw_completion(body, x_request_id=request_id)
        writer.write(request if whole else request[:-5])
        data = b""
        with contextlib.suppress(ConnectionError):
            if whole:
                await asyncio.sleep(self._random.uniform(0.5, 4))
            else:
                data = await asyncio.wait_for(reader.read(), 30)
        writer.transport.abort()
        return data

    async def _break_the_engine(self, client: httpx.AsyncClient) -> None:
        while True:
            pause_s = self._random.uniform(*self._fault_every_s)
            if time.monotonic() + pause_s + 10 > self._ends_s:
                return
            await asyncio.sleep(pause_s)
            fault = self._random.choice(["killed", "frozen"])
            core = self._program.core()
            core.kill() if fault == "killed" else core.suspend()
            self.books.engine_faults[fault] += 1
            hit_s = time.monotonic()
            await self._probe_until(client, ready=False)
            await self._probe_until(client, ready=True)
            if time.monotonic() - hit_s > RECOVERY_S:
                self.books.problems.append(f"{fault}: {time.monotonic() - hit_s:.0f} s until it served again")

    async def _probe_until(self, client: httpx.AsyncClient, *, ready: bool) -> None:
        # A load balancer polls the same way.
        while (await client.get("/readyz")).is_success != ready:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def audit(program: Program, books: Books, client: httpx.Client) -> list[str]:
    """Compare the outcomes that clients saw with the log and the metrics; return every difference."""
    eventually(lambda: metric(client, "tokka_requests_running") == 0, within_s=30)
    eventually(lambda: sum(_logged(program).values()) >= len(books.ends), within_s=30)
    problems = list(books.problems)
    lines = {line["request_id"]: line for line in program.log if line.get("event") == "request_finished"}
    problems += [f"{name}: {times} log lines" for name, times in _logged(program).items() if times != 1]
    for request_id, end in books.ends.items():
        logged = lines[request_id]["outcome"] if request_id in lines else "nothing"
        if end is not None and end != logged:
            problems.append(f"{request_id}: the client saw {end}, the log says {logged}")
    for outcome, number in Counter(lines[name]["outcome"] for name in books.ends if name in lines).items():
        if (counted := metric(client, "tokka_requests_total", outcome=outcome)) != number:
            problems.append(f"{outcome}: {number} in the log, {counted:.0f} in the metrics")
    return problems


def _logged(program: Program) -> Counter[str]:
    lines = [line for line in program.log if line.get("event") == "request_finished"]
    return Counter(line["request_id"] for line in lines if line["request_id"].startswith("soak-"))


def soak(
    program: Program, seconds: float, seed: int, fault_every_s: tuple[float, float] = FAULT_EVERY_S
) -> tuple[Books, list[str]]:
    """Run the load; return the books and all problems, including open files and memory that the server did not free."""
    server = psutil.Process(program.process.pid)
    fds, rss = server.num_fds(), server.memory_info().rss
    with program.client() as client:
        run = Soak(program, seconds, seed, fault_every_s)
        asyncio.run(run.run())
        problems = audit(program, run.books, client)
        with contextlib.suppress(AssertionError):
            eventually(lambda: server.num_fds() <= fds + 4, within_s=15)
        if server.num_fds() > fds + 4:
            problems.append(f"{server.num_fds()} files are open, {fds} were at the start")
        grown = (server.memory_info().rss - rss) >> 20
        if grown > 150:
            problems.append(f"{grown} MiB more memory than at the start")
    return run.books, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1 / 60)
    parser.add_argument("--seed", type=int, default=random.randrange(1000))
    chosen = parser.parse_args()
    with running(*OPTIONS) as program:
        books, problems = soak(program, chosen.hours * 3600, chosen.seed)
    print(f"seed {chosen.seed}: {len(books.ends)} requests {dict(books.outcomes())}")
    print(f"engine {dict(books.engine_faults)}")
    print(*problems or ["no problem"], sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""An open-loop load generator: requests arrive when they are due, whatever became of those before them.

    python -m tests.load.openloop http://127.0.0.1:8000 --rate 5 --duration 30 --pid $(pgrep -of 'tokka serve')
    python -m tests.load.openloop http://127.0.0.1:8000 --tenant one,KEY1,closed=1,tokens=8 --tenant many,KEY2,closed=40

Prints a summary as JSON; `--records FILE` writes a line for each request. A tenant of `closed=N` is N users, each of
whom asks again when the answer is there. The load is the same for the same seed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import uvloop

from tests.load.connection import Answer, Pool, head_of
from tests.load.record import Figures, Record, Window, output_tokens, summary

_Load = Coroutine[Any, Any, None]
# Each is one token of SmolLM2 (and of GPT-2's vocabulary) when a blank precedes it.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work government number night point home water room mother"
    " area money story fact month lot right study book eye job word business issue side kind head house service friend"
    " father power hour game line end member law car city community name president team minute idea body information"
)
WORDS = _TEXT.split()
# A user who is refused and told nothing asks again after this.
REFUSED_PAUSE_S = 1.0
# The SDK waits no longer than that.
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """Either a rate, in requests a second, or a number of users."""

    name: str
    key: str = ""
    rate: float | None = None
    users: int | None = None
    tokens: int | None = None
    # How long a user thinks between an answer and the next question, on average.
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    url: str
    model: str
    tenants: tuple[Tenant, ...]
    duration_s: float = 30.0
    warmup_s: float = 5.0
    grace_s: float = 10.0
    api: str = "chat"
    prompt_tokens: int = 64
    max_tokens: int = 64
    same_prompt: bool = False
    seed: int = 1
    bursts: int = 1
    new_connections: bool = False
    max_connections: int = 2048
    max_requests: int = 100_000
    slo_ttft_s: float = 1.0
    slo_tpot_s: float = 0.1
    # The server's first process, to count its CPU time.
    pid: int | None = None


def arrivals(rate: float, duration_s: float, chance: random.Random, bursts: int = 1) -> list[float]:
    """Return the moments of a Poisson process; of one that is slower by so much, each moment so many times."""
    moments, at_s = [], 0.0
    while rate > 0:
        at_s += chance.expovariate(rate / bursts)
        if at_s >= duration_s:
            break
        moments += [at_s] * bursts
    return moments


class Run:
    """One load on one server, from its first request to the last that is given up."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        address = httpx.URL(plan.url)
        self._host, self._port = address.host, address.port or 80
        self._pool = Pool(self._host, self._port, most=plan.max_connections, reuse=not plan.new_connections)
        self._kept: list[tuple[Record, Answer]] = []
        self._began_s = 0.0
        self._cpu = Cpu(plan.pid)

    async def go(self) -> tuple[list[Record], Figures]:
        plan, loop = self._plan, asyncio.get_running_loop()
        starts = [self._open(tenant) if tenant.rate is not None else self._closed(tenant) for tenant in plan.tenants]
        # A collection would be a pause in the middle of what is measured; the run is bounded.
        gc.collect()
        gc.disable()
        self._began_s = time.monotonic()
        timers = [loop.call_later(at_s, self._cpu.mark) for at_s in (plan.warmup_s, plan.duration_s)]
        tasks = [asyncio.create_task(one) for start in starts for one in start]
        try:
            _, late = await asyncio.wait(tasks, timeout=plan.duration_s + plan.grace_s)
            over_s = self._now_s()
            for task in late:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            gc.enable()
            await self._pool.close()
        for error in ended:
            if isinstance(error, Exception):
                raise error
        # Everything may have ended before the window did.
        await asyncio.sleep(max(0.0, plan.duration_s + 0.1 - self._now_s()))
        for timer in timers:
            timer.cancel()
        return self._figures(max(over_s, plan.duration_s))

    def _figures(self, over_s: float) -> tuple[list[Record], Figures]:
        plan = self._plan
        for record, answer in self._kept:
            record.read(answer, self._began_s)
        records = [record for record, _ in self._kept]
        window = Window(plan.warmup_s, plan.duration_s, over_s)
        targets = {"slo_ttft_s": plan.slo_ttft_s, "slo_tpot_s": plan.slo_tpot_s}
        figures = summary(records, window, **targets)
        figures["tenants"] = {
            tenant.name: summary([one for one in records if one.tenant == tenant.name], window, **targets)
            for tenant in plan.tenants
        }
        cpu = self._cpu.used()
        figures["cpu_s"] = cpu
        figures["client_cpu_us_per_token"] = _per(cpu["client"], output_tokens(records, window))
        figures["front_cpu_ms_per_request"] = _per(cpu.get("front"), figures["offered"] - figures["cut"], 1e3)
        figures["connections_opened"] = self._pool.opened
        return records, figures

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _open(self, tenant: Tenant) -> list[_Load]:
        plan = self._plan
        assert tenant.rate is not None
        chance = random.Random(f"{plan.seed} {tenant.name}")
        moments = arrivals(tenant.rate, plan.duration_s, chance, plan.bursts)[: plan.max_requests]
        # Written before the run: what is written during it is late.
        requests = list(itertools.islice(requests_of(plan, tenant, chance), len(moments)))
        return [self._send_all(tenant, list(zip(moments, requests, strict=True)))]

    async def _send_all(self, tenant: Tenant, due: list[tuple[float, bytes]]) -> None:
        async with asyncio.TaskGroup() as group:
            for due_s, request in due:
                if (early_s := due_s - self._now_s()) > 0:
                    await asyncio.sleep(early_s)
                group.create_task(self._ask(tenant, due_s, request))

    def _closed(self, tenant: Tenant) -> list[_Load]:
        chances = [random.Random(f"{self._plan.seed} {tenant.name} {user}") for user in range(tenant.users or 0)]
        return [self._user(tenant, chance) for chance in chances]

    async def _user(self, tenant: Tenant, chance: random.Random) -> None:
        plan = self._plan
        requests = requests_of(plan, tenant, chance)
        # Not all at once: users who begin together go on together.
        await asyncio.sleep(chance.uniform(0, plan.warmup_s / 2))
        while self._now_s() < plan.duration_s and len(self._kept) < plan.max_requests:
            answer = await self._ask(tenant, self._now_s(), next(requests))
            pause_s = chance.expovariate(1 / tenant.pause_s) if tenant.pause_s else 0.0
            status, headers = head_of(answer)
            if status != 200:
                after = headers.get("retry-after", "")
                pause_s = min(float(after), MAX_RETRY_AFTER_S) if after.isdigit() else REFUSED_PAUSE_S
            await asyncio.sleep(min(pause_s, max(0.0, plan.duration_s - self._now_s())))

    async def _ask(self, tenant: Tenant, due_s: float, request: bytes) -> Answer:
        record, answer = Record(tenant.name, due_s), Answer()
        self._kept.append((record, answer))
        async with self._pool.slots:
            record.sent_s = self._now_s()
            try:
                await self._pool.exchange(request, answer)
            except OSError as error:
                record.code, record.ended_s = type(error).__name__, self._now_s()
        return answer


class Cpu:
    """CPU time of the client and of a server's processes between two moments."""

    def __init__(self, pid: int | None) -> None:
        # Found before the run: to look for them takes milliseconds.
        self._front = psutil.Process(pid) if pid else None
        self._children = self._front.children(recursive=True) if self._front else []
        self._marks: list[dict[str, float]] = []

    def mark(self) -> None:
        whole = psutil.cpu_times()
        now = {"client": time.process_time(), "machine": sum(whole[:3]) + sum(whole[5:8])}
        if self._front is not None:
            now["front"] = _cpu_s(self._front)
            now["server"] = now["front"] + sum(map(_cpu_s, self._children))
        self._marks.append(now)

    def used(self) -> dict[str, float]:
        """Return seconds between the first mark and the last, those of others on this machine among them."""
        first, last = self._marks[0], self._marks[-1]
        used = {name: last[name] - first[name] for name in last}
        used["others"] = max(0.0, used.pop("machine") - used["client"] - used.get("server", 0.0))
        return {name: round(seconds, 3) for name, seconds in used.items()}


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _per(total: float | None, count: float, unit: float = 1e6) -> float | None:
    return round(total * unit / count, 2) if total is not None and count else None


def requests_of(plan: Plan, tenant: Tenant, chance: random.Random) -> Iterator[bytes]:
    """Return a tenant's requests, each with a prompt of its own so that no prefix is cached, unless asked."""
    address = httpx.URL(plan.url)
    key = f"Authorization: Bearer {tenant.key}\r\n" if tenant.key else ""
    close = "Connection: close\r\n" if plan.new_connections else ""
    path = "/v1/chat/completions" if plan.api == "chat" else "/v1/completions"
    fields = {"model": plan.model, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    if plan.same_prompt:
        chance = random.Random(plan.seed)
    same = " ".join(chance.choices(WORDS, k=plan.prompt_tokens))
    while True:
        text = same if plan.same_prompt else " ".join(chance.choices(WORDS, k=plan.prompt_tokens))
        # The same name in both APIs, the older one: every server knows it.
        body = {**fields, "max_tokens": tenant.tokens or plan.max_tokens}
        body |= {"messages": [{"role": "user", "content": text}]} if plan.api == "chat" else {"prompt": text}
        content = orjson.dumps(body)
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc.decode()}\r\n{key}{close}"
        yield f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def run(plan: Plan) -> tuple[list[Record], Figures]:
    """Put the load on the server and return what came of it."""
    # As many connections as the plan allows, and a few files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(plan.max_connections + 256, most), most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Run(plan).go())


def tenant_of(text: str) -> Tenant:
    """Read `name,key,open=RATE` or `name,key,closed=USERS`, with `tokens=N` and `pause=SECONDS` if wanted."""
    name, key, *options = text.split(",")
    given = dict(option.split("=", 1) for option in options)
    tenant = Tenant(
        name,
        key,
        rate=float(given.pop("open")) if "open" in given else None,
        users=int(given.pop("closed")) if "closed" in given else None,
        tokens=int(given.pop("tokens")) if "tokens" in given else None,
        pause_s=float(given.pop("pause", 0)),
    )
    if given or (tenant.rate is None) == (tenant.users is None):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME,KEY,open=RATE or NAME,KEY,closed=USERS")
    return tenant


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--tenant", type=tenant_of, action="append", metavar="NAME,KEY,open=RATE|closed=USERS")
    parser.add_argument("--rate", type=float, help="requests a second of a single tenant")
    parser.add_argument("--key", default="", help="key of the single tenant")
    parser.add_argument("--duration", type=float, default=30, help="seconds in which requests arrive")
    parser.add_argument("--warmup", type=float, default=5, help="seconds of them that do not count")
    parser.add_argument("--grace", type=float, default=10, help="seconds to wait for open answers after that")
    parser.add_argument("--api", choices=["chat", "completions"], default="chat")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="words of one token each")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of each answer, no more and no less")
    parser.add_argument("--same-prompt", action="store_true", help="one prompt for all: prefix caching helps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bursts", type=int, default=1, help="requests that arrive at once; the rate stays")
    parser.add_argument("--new-connections", action="store_true", help="one for each request, instead of a pool")
    parser.add_argument("--max-connections", type=int, default=2048)
    parser.add_argument("--max-requests", type=int, default=100_000, help="for each tenant")
    parser.add_argument("--slo-ttft", type=float, default=1.0, help="target in seconds")
    parser.add_argument("--slo-tpot", type=float, default=0.1, help="target in seconds")
    parser.add_argument("--pid", type=int, help="the server's first process, to count its CPU time")
    parser.add_argument("--records", type=Path, help="write a line of JSON for each request into this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _parser().parse_args(arguments)
    tenants = tuple(chosen.tenant or ()) or (Tenant("all", chosen.key, rate=chosen.rate or 1.0),)
    keyed = {"Authorization": f"Bearer {tenants[0].key}"} if tenants[0].key else {}
    model = chosen.model or httpx.get(f"{chosen.url}/v1/models", headers=keyed).json()["data"][0]["id"]
    plan = Plan(
        chosen.url.rstrip("/"),
        model,
        tenants,
        duration_s=chosen.duration,
        warmup_s=chosen.warmup,
        grace_s=chosen.grace,
        slo_ttft_s=chosen.slo_ttft,
        slo_tpot_s=chosen.slo_tpot,
        api=chosen.api,
        prompt_tokens=chosen.prompt_tokens,
        max_tokens=chosen.max_tokens,
        same_prompt=chosen.same_prompt,
        seed=chosen.seed,
        bursts=chosen.bursts,
        new_connections=chosen.new_connections,
        max_connections=chosen.max_connections,
        max_requests=chosen.max_requests,
        pid=chosen.pid,
    )
    records, figures = run(plan)
    if chosen.records:
        lines = [json.dumps({**asdict(record), "outcome": record.outcome}) for record in records]
        chosen.records.write_text("\n".join(lines) + "\n")
    json.dump(figures, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

"""Put a load on a server: open loops, closed loops, or both at once. The same seed gives the same load."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import uvloop

from tokka.bench.address import address_of
from tokka.bench.connection import Answer, Pool, head_of
from tokka.bench.cpu import Cpu
from tokka.bench.errors import BenchFailedError
from tokka.bench.figures import Figures, Window, cpu_figures, summary
from tokka.bench.plan import Plan, Tenant, due, sizes
from tokka.bench.record import Record
from tokka.bench.request import requests_of

_Load = Coroutine[Any, Any, None]
# Seconds after which a refused user tries again if there is no Retry-After header.
REFUSED_PAUSE_S = 1.0
# Maximum seconds of a Retry-After header that a user obeys, as in OpenAI's SDK.
MAX_RETRY_AFTER_S = 60.0
# Maximum bytes of the requests that an open loop writes before the run.
MAX_WRITTEN_BYTES = 1 << 30
# Maximum bytes of responses that are kept and parsed after the run. The client parses further ones at once, which costs
# CPU during the run but bounds its memory.
MAX_KEPT_BYTES = 512 << 20


class Run:
    """One load on one server, from the first request until the client gives up on the last one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pool = Pool(address_of(plan.url), most=plan.max_connections, reuse=not plan.new_connections)
        self._records: list[Record] = []
        self._kept: list[tuple[Record, Answer]] = []
        self._kept_bytes = 0
        self._began_s = 0.0
        self._cpu = Cpu(plan.pid)
        # Whether the plan's maximum of requests was sent before the time was over.
        self._is_spent = False

    async def go(self) -> tuple[list[Record], Figures]:
        """Run the load once. Return the records of all requests, and the figures. Raises BenchFailedError."""
        plan, loop = self._plan, asyncio.get_running_loop()
        starts = [self._open(tenant) if tenant.rate is not None else self._closed(tenant) for tenant in plan.tenants]
        # A garbage collection would pause the measurement. The run is bounded, so memory suffices without it.
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
        until_s = await self._until(over_s)
        for timer in timers:
            timer.cancel()
        return self._figures(Window(plan.warmup_s, until_s, max(over_s, until_s)))

    async def _until(self, over_s: float) -> float:
        """Wait for the end of the window, and return its time."""
        plan = self._plan
        if not self._is_spent or over_s >= plan.duration_s:
            # All requests may have ended before the window.
            await asyncio.sleep(max(0.0, plan.duration_s + 0.1 - self._now_s()))
            return plan.duration_s
        if over_s <= plan.warmup_s:
            raise BenchFailedError(
                f"all {len(self._records)} requests were over within the warm-up of {plan.warmup_s:g} s; "
                "allow more with --requests, or shorten --warmup"
            )
        self._cpu.mark()
        return over_s

    def _figures(self, window: Window) -> tuple[list[Record], Figures]:
        plan = self._plan
        for record, answer in self._kept:
            record.read(answer, self._began_s)
        records = self._records
        figures = self._summary(records, window)
        if not figures["offered"]:
            # Errors in the warm-up explain why no request was due after it.
            whole = self._summary(records, replace(window, from_s=0))
            figures |= {name: whole[name] for name in ("refusals", "failures", "messages")}
        figures["tenants"] = {
            tenant.name: self._summary([one for one in records if one.tenant == tenant.name], window)
            for tenant in plan.tenants
        }
        figures |= cpu_figures(self._cpu.used(), records, window)
        figures["connections_opened"] = self._pool.opened
        return records, figures

    def _summary(self, records: list[Record], window: Window) -> Figures:
        plan = self._plan
        return summary(records, window, slo_ttft_s=plan.slo_ttft_s, slo_tpot_s=plan.slo_tpot_s, stream=plan.stream)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _open(self, tenant: Tenant) -> list[_Load]:
        plan = self._plan
        chance = random.Random(f"{plan.seed} {tenant.name}")
        arrivals = due(plan, tenant, chance)
        self._is_spent |= len(arrivals) > plan.max_requests
        del arrivals[plan.max_requests :]
        # Write the requests before the run: writing them during it would delay them.
        requests, size = [], 0
        for request in requests_of(plan, tenant, chance, ((one.prompt_tokens, one.max_tokens) for one in arrivals)):
            requests.append(request)
            size += len(request)
            if size > MAX_WRITTEN_BYTES:
                raise BenchFailedError(
                    f"the requests of {plan.duration_s:g} s at {tenant.rate or 0:g}/s take more than "
                    f"{MAX_WRITTEN_BYTES >> 20} MiB; lower --duration, --rate, --requests or --prompt-tokens"
                )
        return [self._send_all(tenant, list(zip((one.at_s for one in arrivals), requests, strict=True)))]

    async def _send_all(self, tenant: Tenant, due: list[tuple[float, bytes]]) -> None:
        async with asyncio.TaskGroup() as group:
            for due_s, request in due:
                if (early_s := due_s - self._now_s()) > 0:
                    await asyncio.sleep(early_s)
                group.create_task(self._ask(tenant, request, due_s))

    def _closed(self, tenant: Tenant) -> list[_Load]:
        names = [f"{self._plan.seed} {tenant.name} {user}" for user in range(tenant.concurrency or 0)]
        return [self._user(tenant, random.Random(name)) for name in names]

    async def _user(self, tenant: Tenant, chance: random.Random) -> None:
        plan = self._plan
        requests = requests_of(plan, tenant, chance, sizes(plan, tenant, chance))
        # Start the users at different times: users that begin together stay in step.
        await asyncio.sleep(chance.uniform(0, plan.warmup_s / 2))
        while self._now_s() < plan.duration_s:
            if len(self._records) >= plan.max_requests:
                self._is_spent = True
                break
            answer = await self._ask(tenant, next(requests))
            pause_s = chance.expovariate(1 / tenant.pause_s) if tenant.pause_s else 0.0
            status, headers = head_of(answer)
            if status != 200:
                after = headers.get("retry-after", "")
                pause_s = min(float(after), MAX_RETRY_AFTER_S) if after.isdigit() else REFUSED_PAUSE_S
            await asyncio.sleep(min(pause_s, max(0.0, plan.duration_s - self._now_s())))

    async def _ask(self, tenant: Tenant, request: bytes, due_s: float | None = None) -> Answer:
        record, answer = Record(tenant.name, self._now_s() if due_s is None else due_s), Answer()
        self._records.append(record)
        try:
            async with self._pool.slots:
                record.sent_s = self._now_s()
                if due_s is None:
                    # In a closed loop, the user's wait begins when the request is sent, not while it waits for a slot.
                    record.due_s = record.sent_s
                await self._pool.exchange(request, answer)
        except OSError as error:
            record.code, record.message, record.ended_s = type(error).__name__, str(error), self._now_s()
        finally:
            self._keep(record, answer)
        return answer

    def _keep(self, record: Record, answer: Answer) -> None:
        self._kept_bytes += sum(len(piece) for _, piece in answer.pieces)
        if self._kept_bytes > MAX_KEPT_BYTES:
            record.read(answer, self._began_s)
        else:
            self._kept.append((record, answer))


def run(plan: Plan) -> tuple[list[Record], Figures]:
    """Put the load on the server. Return the records of all requests, and the figures. Blocks for the whole run."""
    # Allow enough file descriptors for the plan's connections and a few files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(plan.max_connections + 256, most), most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Run(plan).go())

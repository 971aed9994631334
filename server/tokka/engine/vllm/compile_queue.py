"""Decides whose constraint is compiled next: round robin between tenants, with a CPU budget for each.

Pure: the time is an argument. `grammars.py` owns the processes and asks here.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Job = TypeVar("Job")

# Seconds a queued constraint may wait for a process.
WAIT_S = 10.0
# Queued constraints of one tenant, equal ones counted once.
MAX_QUEUED = 64
# CPU seconds a tenant may use at once, and CPU seconds that come back each second. A schema as people write them takes
# 0.01 to 0.04 s; the longest compilation takes 1 s.
BUDGET_S = 2.0
REFILL = 0.1
# Expected seconds of a tenant's first compilation.
_UNKNOWN_S = 0.05
# Weight of the newest compilation in a tenant's average.
_NEWEST = 0.3


@dataclass(slots=True)
class _Account:
    """What one tenant has used of its budget at `at_s`, and how long its compilations took on average."""

    used_s: float = 0.0
    at_s: float = 0.0
    average_s: float = _UNKNOWN_S

    def used_now_s(self, now_s: float) -> float:
        return max(0.0, self.used_s - REFILL * (now_s - self.at_s))


@dataclass(slots=True)
class CompileQueue(Generic[Job]):
    """Queued jobs of all tenants. A tenant over its budget gets a process only while no tenant within it waits.

    With several processes, tenants over their budgets never hold the last one: a new tenant finds it free.
    """

    processes: int
    # Tenants in order of their turns, none without a queued job.
    _queued: OrderedDict[str, OrderedDict[Job, None]] = field(default_factory=OrderedDict)
    # Started and unfinished jobs: the tenant of each.
    _running: list[str] = field(default_factory=list)
    _accounts: dict[str, _Account] = field(default_factory=dict)

    def refused_for_s(self, tenant: str, now_s: float) -> float | None:
        """Return after how many seconds to try again if a new job of this tenant has no chance; None if it has one."""
        wait_s = self.wait_s(tenant, now_s)
        is_full = len(self._queued.get(tenant, ())) >= MAX_QUEUED
        return wait_s if is_full or wait_s > WAIT_S else None

    def wait_s(self, tenant: str, now_s: float) -> float:
        """Return for how long a new job of this tenant would probably wait for a process."""
        own = len(self._queued.get(tenant, ()))
        is_over = self._is_over(tenant, now_s)
        ahead_s = own * self._average_s(tenant)
        for other, jobs in self._queued.items():
            if other == tenant:
                continue
            if is_over and not self._is_over(other, now_s):
                ahead_s += len(jobs) * self._average_s(other)
            elif is_over or not self._is_over(other, now_s):
                # A tenant in the same rotation starts one job before each of ours.
                ahead_s += min(len(jobs), own + 1) * self._average_s(other)
        if ahead_s == 0 and self._has_room(is_over=is_over, now_s=now_s):
            return 0.0
        ahead_s += sum(map(self._average_s, self._running))
        return ahead_s / self._room_of(is_over=is_over)

    def add(self, tenant: str, job: Job) -> None:
        self._queued.setdefault(tenant, OrderedDict())[job] = None

    def remove(self, tenant: str, job: Job) -> None:
        """Forget a job that nobody waits for any more. Does nothing if it was started."""
        jobs = self._queued.get(tenant, OrderedDict())
        jobs.pop(job, None)
        if not jobs:
            self._queued.pop(tenant, None)

    def start(self, now_s: float) -> Job | None:
        """Take the next job out of the queue and count it as running; None if none may start now."""
        tenant = self._next_tenant(now_s)
        if tenant is None:
            return None
        job, _ = self._queued[tenant].popitem(last=False)
        self._queued.move_to_end(tenant)
        if not self._queued[tenant]:
            del self._queued[tenant]
        self._running.append(tenant)
        return job

    def finish(self, tenant: str, *, cpu_s: float, held_s: float, now_s: float) -> None:
        """Charge a job that has ended to its tenant. `held_s`: for how long it held the process."""
        self._running.remove(tenant)
        account = self._accounts.setdefault(tenant, _Account())
        account.used_s, account.at_s = account.used_now_s(now_s) + cpu_s, now_s
        account.average_s += _NEWEST * (held_s - account.average_s)
        for known in [name for name, account in self._accounts.items() if not account.used_now_s(now_s)]:
            del self._accounts[known]

    def _next_tenant(self, now_s: float) -> str | None:
        if not self._has_room(is_over=False, now_s=now_s):
            return None
        for tenant in self._queued:
            if not self._is_over(tenant, now_s):
                return tenant
        return next(iter(self._queued), None) if self._has_room(is_over=True, now_s=now_s) else None

    def _has_room(self, *, is_over: bool, now_s: float) -> bool:
        if len(self._running) >= self.processes:
            return False
        if not is_over:
            return True
        held = sum(self._is_over(tenant, now_s) for tenant in self._running)
        return held < self._room_of(is_over=True)

    def _room_of(self, *, is_over: bool) -> int:
        return max(1, self.processes - 1) if is_over else self.processes

    def _is_over(self, tenant: str, now_s: float) -> bool:
        account = self._accounts.get(tenant)
        return account is not None and account.used_now_s(now_s) >= BUDGET_S

    def _average_s(self, tenant: str) -> float:
        account = self._accounts.get(tenant)
        return account.average_s if account else _UNKNOWN_S

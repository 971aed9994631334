"""Decides which constraint is compiled next: round robin between tenants, with a CPU budget for each.

Pure: the time is an argument. `service.py` owns the processes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Job = TypeVar("Job")

# Maximum seconds that a constraint waits for a process.
WAIT_S = 10.0
# Maximum queued constraints of one tenant. Equal constraints count once.
MAX_QUEUED = 64
# Maximum CPU seconds that a tenant can use at once, and CPU seconds regained each second. A typical schema takes 0.01
# to 0.04 s; the longest compilation takes 1 s.
BUDGET_S = 2.0
REFILL = 0.1
# Expected seconds of a tenant's first compilation.
_UNKNOWN_S = 0.05
# Weight of the newest compilation in a tenant's average.
_NEWEST = 0.3


@dataclass(slots=True)
class _Account:
    """One tenant's used budget at `at_s`, and the mean duration of its compilations. All in seconds."""

    used_s: float = 0.0
    at_s: float = 0.0
    average_s: float = _UNKNOWN_S

    def used_now_s(self, now_s: float) -> float:
        return max(0.0, self.used_s - REFILL * (now_s - self.at_s))


@dataclass(slots=True)
class CompileQueue(Generic[Job]):
    """Queued jobs of all tenants. A tenant over its budget gets a process only if all queued tenants are over theirs.

    With several processes, tenants over their budgets never hold the last one, so a new tenant finds it free.
    """

    processes: int
    # Tenants with queued jobs, in round-robin order.
    _queued: OrderedDict[str, OrderedDict[Job, None]] = field(default_factory=OrderedDict)
    # The tenant of each started, unfinished job.
    _running: list[str] = field(default_factory=list)
    _accounts: dict[str, _Account] = field(default_factory=dict)

    def refused_for_s(self, tenant: str, now_s: float) -> float | None:
        """Return the seconds until a retry if a new job of this tenant must be refused; None if it can be queued."""
        wait_s = self.wait_s(tenant, now_s)
        is_full = len(self._queued.get(tenant, ())) >= MAX_QUEUED
        return wait_s if is_full or wait_s > WAIT_S else None

    def wait_s(self, tenant: str, now_s: float) -> float:
        """Return the expected seconds that a new job of this tenant waits for a process."""
        own = len(self._queued.get(tenant, ()))
        is_over = self._is_over(tenant, now_s)
        ahead_s = own * self._average_s(tenant)
        for other, jobs in self._queued.items():
            if other == tenant:
                continue
            if is_over and not self._is_over(other, now_s):
                ahead_s += len(jobs) * self._average_s(other)
            elif is_over or not self._is_over(other, now_s):
                # Round robin: the other tenant starts one job before each job of this tenant.
                ahead_s += min(len(jobs), own + 1) * self._average_s(other)
        if ahead_s == 0 and self._has_room(is_over=is_over, now_s=now_s):
            return 0.0
        ahead_s += sum(map(self._average_s, self._running))
        return ahead_s / self._room_of(is_over=is_over)

    def add(self, tenant: str, job: Job) -> None:
        self._queued.setdefault(tenant, OrderedDict())[job] = None

    def remove(self, tenant: str, job: Job) -> None:
        """Remove a queued job. Does nothing if the job was started."""
        jobs = self._queued.get(tenant, OrderedDict())
        jobs.pop(job, None)
        if not jobs:
            self._queued.pop(tenant, None)

    def start(self, now_s: float) -> Job | None:
        """Take the next job out of the queue and count it as running. Return None if no job can start now."""
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
        """Charge an ended job to its tenant. `held_s`: seconds that it held the process."""
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

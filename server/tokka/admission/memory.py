"""Memory budgets for requests: a limit in total, and half of it for one tenant. Pure."""

from __future__ import annotations

from collections import Counter

from tokka.errors import ServerOverloaded

_RETRY_AFTER_S = 2.0
# Maximum share of the budget for one tenant.
_TENANT_PART = 0.5


class MemoryBudget:
    """Counts the bytes that requests hold. `purpose` names them in errors, as in "request bodies"."""

    def __init__(self, limit: int, purpose: str) -> None:
        self.limit = limit
        self._purpose = purpose
        self._held_of: Counter[str] = Counter()

    @property
    def held(self) -> int:
        return self._held_of.total()

    def take(self, tenant: str, size: int) -> None:
        """Count bytes as held. Raises ServerOverloaded, without counting them, if there is no room."""
        own = self._held_of[tenant]
        # A tenant that holds nothing may exceed its share; otherwise a size near the limit could never be served.
        if self.held + size > self.limit or (own and own + size > self.limit * _TENANT_PART):
            raise ServerOverloaded(
                f"The server has no memory left for {self._purpose}. Retry in {_RETRY_AFTER_S:.0f} s.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._held_of[tenant] += size

    def give_back(self, tenant: str, size: int) -> None:
        self._held_of[tenant] -= size
        if not self._held_of[tenant]:
            del self._held_of[tenant]


class Share:
    """One request's part of a budget, held until `release`."""

    def __init__(self, budget: MemoryBudget, tenant: str) -> None:
        self._budget = budget
        self._tenant = tenant
        self._size = 0

    def grow_to(self, size: int) -> None:
        """Hold `size` bytes in total. Raises ServerOverloaded."""
        if size > self._size:
            self._budget.take(self._tenant, size - self._size)
            self._size = size

    def release(self) -> None:
        """Give all bytes back. Safe to call twice."""
        if self._size:
            self._budget.give_back(self._tenant, self._size)
            self._size = 0

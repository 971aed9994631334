"""Memory that requests hold: bounded in all, and for one tenant to half of it. Pure."""

from __future__ import annotations

from collections import Counter

from tokka.errors import ServerOverloaded

_RETRY_AFTER_S = 2.0
# One tenant's part of the whole.
_TENANT_PART = 0.5


class MemoryBudget:
    """Counts bytes. `purpose` names them in refusals, as in "request bodies"."""

    def __init__(self, limit: int, purpose: str) -> None:
        self.limit = limit
        self._purpose = purpose
        self._held_of: Counter[str] = Counter()

    @property
    def held(self) -> int:
        return self._held_of.total()

    def take(self, tenant: str, size: int) -> None:
        """Count bytes as held. Raises ServerOverloaded if there is no room; then nothing is counted."""
        own = self._held_of[tenant]
        # A single holder may take what it needs: else a size near the limit would never be served.
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
    """What one request holds of a budget, until `release`."""

    def __init__(self, budget: MemoryBudget, tenant: str) -> None:
        self._budget = budget
        self._tenant = tenant
        self._size = 0

    def grow_to(self, size: int) -> None:
        """Hold so many bytes in all. Raises ServerOverloaded."""
        if size > self._size:
            self._budget.take(self._tenant, size - self._size)
            self._size = size

    def release(self) -> None:
        """Give all of it back. Safe to call twice."""
        if self._size:
            self._budget.give_back(self._tenant, self._size)
            self._size = 0

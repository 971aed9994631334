"""Streams that wait for a model without a replica, with their headers sent already."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from tokka.dispatch.catalogue import ServedModel
from tokka.errors import ModelStarting, ServerOverloaded

# Maximum waits, in all and of one tenant. Each keeps its request.
_MOST, _MOST_OF_TENANT = 1024, 256
# Seconds between two looks without a change of the model. Each tells the fleet that the model is still wanted.
_LOOK_S = 1.0


class Holds:
    """Counts the waits."""

    def __init__(self) -> None:
        self.of_tenant: Counter[str] = Counter()

    def begin(self, model: ServedModel, tenant: str, wait_s: float) -> Hold:
        """Raise ServerOverloaded if too many wait already."""
        if self.of_tenant.total() >= _MOST or self.of_tenant[tenant] >= _MOST_OF_TENANT:
            after_s = model.replicas.progress().retry_after_s
            raise ServerOverloaded(
                f"Too many requests wait for models that are starting. Retry in {after_s} s.", retry_after_s=after_s
            )
        return Hold(self, model, tenant, wait_s)


class Hold:
    """One wait. It counts while it waits."""

    def __init__(self, holds: Holds, model: ServedModel, tenant: str, wait_s: float) -> None:
        self._holds = holds
        self._model = model
        self._tenant = tenant
        self._wait_s = wait_s

    async def wait(self) -> None:
        """Return when a replica is ready, the server drains or the time is over. A fleet starts a replica for it."""
        counts, replicas = self._holds.of_tenant, self._model.replicas
        counts[self._tenant] += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s):
                    async for _ in replicas.changes(_LOOK_S):
                        if self._model.admission.is_draining:
                            return
                        with suppress(ModelStarting):
                            replicas.engine()
                            return
        finally:
            counts[self._tenant] -= 1
            if not counts[self._tenant]:
                del counts[self._tenant]

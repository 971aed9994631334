"""A stream that waits for a model without a replica, with its headers sent already."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tokka.admission.memory import MemoryBudget, Share
from tokka.dispatch.catalogue import ServedModel
from tokka.errors import ModelStarting

# Seconds between two looks without a change of the model. Each tells the fleet that the model is still wanted.
_LOOK_S = 1.0
# Bytes that a wait takes: a constant, and this many for each byte of the request's body.
_BYTES, _PER_BYTE = 64 << 10, 2


class Hold:
    """One wait, and the memory of its request. Call `release` at its end."""

    def __init__(self, model: ServedModel, budget: MemoryBudget, tenant: str, body_bytes: int, wait_s: float) -> None:
        """Raise ServerOverloaded if the waiting requests have no memory left."""
        self._model = model
        self._wait_s = wait_s
        self._share = Share(budget, tenant)
        self._share.grow_to(_BYTES + _PER_BYTE * body_bytes)

    async def wait(self) -> None:
        """Return when a replica is ready, the server drains or the time is over. A fleet starts a replica for it."""
        replicas = self._model.replicas
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                async for _ in replicas.changes(_LOOK_S):
                    if self._model.admission.is_draining:
                        return
                    with suppress(ModelStarting):
                        replicas.engine()
                        return

    def release(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._share.release()

"""The last response of one connection, which its next request can continue although it is not stored."""

from __future__ import annotations

import asyncio

import orjson

from tokka.accounts.responses import Kept
from tokka.admission.memory import MemoryBudget, Share
from tokka.errors import ServerOverloaded


class LastResponse:
    """At most one response that is not in the database, with the conversation before it."""

    def __init__(self, memory: MemoryBudget) -> None:
        """`memory`: for the conversations of all connections."""
        self._memory = memory
        # Empty: none.
        self.id = ""
        self._tenant = ""
        # As JSON, which takes a fraction of the memory of its objects.
        self._kept = b""
        self._share: Share | None = None

    async def keep(self, tenant: str, kept: Kept) -> None:
        """Keep a response in place of the one before. Keeps none if there is no memory for it."""
        packed = await asyncio.to_thread(orjson.dumps, [kept.response, kept.items])
        self.clear()
        share = Share(self._memory, tenant)
        try:
            share.grow_to(len(packed))
        except ServerOverloaded:
            # The client learns that it is not there, and sends the whole conversation.
            return
        self.id, self._tenant, self._kept, self._share = kept.response["id"], tenant, packed, share

    async def take(self, tenant: str, response_id: str) -> Kept | None:
        """Return the response and forget it, or None. A failed continuation must not find it again."""
        if not self.id or (self._tenant, self.id) != (tenant, response_id):
            return None
        packed = self._kept
        self.clear()
        response, items = await asyncio.to_thread(orjson.loads, packed)
        return Kept(response, items, size=len(packed))

    def clear(self) -> None:
        """Forget the response, and give its memory back."""
        if self._share is not None:
            self._share.release()
        self.id, self._tenant, self._kept, self._share = "", "", b"", None

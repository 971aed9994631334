"""Stored responses: written in groups, read and removed by the thread of the database."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from tokka.accounts.accounts import Accounts
from tokka.accounts.compression import compressed, inflated
from tokka.accounts.event_log import EventLog
from tokka.errors import ResponseNotFound, StateUnavailable
from tokka.store.rows import UNFINISHED, Ended, EventChunk, ResponseRow

if TYPE_CHECKING:
    # The ledger imports SQLAlchemy, which a thread imports later.
    from tokka.accounts.ledger import Ledger

log = structlog.get_logger("tokka.responses")

# Seconds between two removals of old responses.
_PRUNE_S = 60.0
# Maximum responses that one transaction writes.
_GROUP = 64
# Seconds until a client may retry to store a response.
_RETRY_S = 5.0
_RESPONSE_ID = re.compile("resp_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored response: the response object, and the items of the conversation before it."""

    response: dict[str, Any]
    items: list[dict[str, Any]]
    # Milliseconds since 1970 of the last sign of life of the server that generates it.
    seen_at: int = 0
    # Bytes of the conversation as JSON: the items and the output of the response.
    size: int = 0


class ResponseStore:
    """Stores responses in the database. A response is stored once `save` returns, even if the server dies then."""

    def __init__(self, accounts: Accounts, *, ttl_s: float, tenant_bytes: int) -> None:
        """`ttl_s`: seconds after which a response is removed. `tenant_bytes`: maximum size of a tenant's responses.

        Sizes are those before compression.
        """
        self._accounts = accounts
        self._ttl_s = int(ttl_s)
        self._tenant_bytes = tenant_bytes
        self._waiting: list[tuple[str, Kept, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self._accounts.is_up

    async def run(self) -> None:
        """Remove old responses every minute, until cancelled."""
        while True:
            await self.prune()
            await asyncio.sleep(_PRUNE_S)

    async def prune(self) -> None:
        """Remove responses beyond the limits of age and size. Does nothing while the database is unavailable."""
        if self.is_up:
            try:
                await self._accounts.ask(lambda ledger: ledger.prune_responses(self._ttl_s, self._tenant_bytes))
            except StateUnavailable as error:
                log.warning("responses_not_pruned", reason=error.message)

    async def save(self, tenant: str, kept: Kept) -> None:
        """Store a response. Raises StateUnavailable, at once while the database is down."""
        if not self.is_up:
            raise _unavailable()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tenant, kept, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        # A client that goes must not cancel a write of other clients.
        await asyncio.shield(done)

    async def find(self, tenant: str, response_id: str) -> Kept | None:
        """Return a response of the tenant, or None. Raises StateUnavailable."""
        if not self._can_have(response_id):
            return None
        return await self._accounts.ask(lambda ledger: _read(ledger, tenant, response_id))

    async def remove(self, tenant: str, response_id: str) -> bool:
        """Remove a response. Return False if the tenant has none with this id. Raises StateUnavailable."""
        if not self._can_have(response_id):
            return False
        return await self._accounts.ask(lambda ledger: ledger.remove_response(tenant, response_id))

    async def events(self, response_id: str) -> EventLog:
        """Return the stored events of a response that runs or ran in the background. Raises StateUnavailable."""
        return EventLog(await self._accounts.ask(lambda ledger: ledger.response_events(response_id)))

    async def advance(self, response_id: str, chunk: EventChunk | None) -> bool:
        """Note that a response is being generated. Return False if it was ended or removed. Raises StateUnavailable."""
        return await self._accounts.ask(lambda ledger: ledger.advance_response(response_id, chunk))

    async def finish(self, tenant: str, response: dict[str, Any], chunk: EventChunk | None) -> dict[str, Any]:
        """Store the end of a response. Return the response as it is stored: another end may have come first.

        Raises ResponseNotFound, StateUnavailable.
        """
        if await self._accounts.ask(partial(_finish, response, chunk)):
            return response
        if (kept := await self.find(tenant, response["id"])) is None:
            raise ResponseNotFound(response["id"])
        return kept.response

    def _can_have(self, response_id: str) -> bool:
        # Any other text could be one that the database refuses, and then seems to be down.
        return self._accounts.has_database and bool(_RESPONSE_ID.fullmatch(response_id))

    async def _write(self) -> None:
        """Write the waiting responses, as many as possible in each transaction: a commit waits for the disk."""
        try:
            while group := self._waiting[:_GROUP]:
                del self._waiting[:_GROUP]
                given = [(tenant, kept) for tenant, kept, _ in group]
                try:
                    await self._accounts.ask(partial(_save, given, self._tenant_bytes))
                except Exception as error:
                    if isinstance(error, StateUnavailable):
                        # The next write would wait as long, while its requests hold their slots.
                        group, self._waiting = group + self._waiting, []
                    _settle([done for *_, done in group], error)
                else:
                    _settle([done for *_, done in group], None)
        finally:
            self._writing = None


def is_unfinished(response: dict[str, Any]) -> bool:
    """Return whether a response is being generated."""
    return response["status"] in UNFINISHED


def _unavailable() -> StateUnavailable:
    return StateUnavailable("The database cannot be used now, so the response is not stored.", retry_after_s=_RETRY_S)


def _settle(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


def _save(given: list[tuple[str, Kept]], tenant_bytes: int, ledger: Ledger) -> None:
    ledger.save_responses([_packed(tenant, kept) for tenant, kept in given], tenant_bytes)


def _finish(response: dict[str, Any], chunk: EventChunk | None, ledger: Ledger) -> bool:
    return ledger.finish_response(Ended(response["id"], response["status"], *_pack(response)), chunk)


def _packed(tenant: str, kept: Kept) -> ResponseRow:
    (response, size), (items, items_size) = _pack(kept.response), _pack(kept.items)
    return ResponseRow(kept.response["id"], tenant, kept.response["status"], response, items, size + items_size)


def _pack(value: Any) -> tuple[bytes, int]:
    """Return the compressed document, and its bytes before compression."""
    data = orjson.dumps(value)
    return compressed(data), len(data)


def _read(ledger: Ledger, tenant: str, response_id: str) -> Kept | None:
    row = ledger.response(tenant, response_id)
    if row is None:
        return None
    response = orjson.loads(inflated(row.response, row.size))
    items = inflated(row.items, row.size)
    size = len(items) + len(orjson.dumps(response["output"]))
    return Kept(response, orjson.loads(items), row.seen_at, size)

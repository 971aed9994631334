"""The state of the Responses API: continues stored conversations, and stores responses before their last event."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace

import orjson

from tokka.accounts.responses import Kept, ResponseStore, is_unfinished
from tokka.admission.memory import MemoryBudget
from tokka.core import Event, Finished
from tokka.dispatch.last_response import LastResponse
from tokka.engine.base import Sink
from tokka.errors import InvalidRequest, PreviousResponseNotFound, ResponseNotFound, StateUnavailable
from tokka.protocol.generation import ParsedGeneration
from tokka.protocol.messages import MAX_MESSAGES
from tokka.protocol.responses.continuing import continued
from tokka.protocol.responses.encoder import ResponsesEncoder
from tokka.protocol.responses.items import PlainItem
from tokka.protocol.responses.resource import ResponseForm

# The id of an output item holds the id of its response.
_ITEM_ID = re.compile(r"[a-z]{2,8}_([0-9a-f]{32})[0-9a-f]{4}")
# Maximum references of a request to items of other responses.
_MAX_REFERENCES = 64
_RETRY_S = 5.0
# Maximum bytes of the last responses of all connections. A connection without room keeps none.
_LAST_RESPONSES_BYTES = 64 << 20


class Conversations:
    """Stored responses, for the requests of one tenant each."""

    def __init__(self, store: ResponseStore, max_bytes: Callable[[], int]) -> None:
        """`max_bytes`: the maximum size of a body, and of a conversation that a request continues."""
        self._store = store
        self._max_bytes = max_bytes
        self._memory = MemoryBudget(_LAST_RESPONSES_BYTES, "conversations of connections")

    def of_connection(self) -> LastResponse:
        """Return the place for the last response of a new connection."""
        return LastResponse(self._memory)

    async def resolve(
        self, parsed: ParsedGeneration[ResponseForm], tenant: str, last: LastResponse | None = None
    ) -> ParsedGeneration[ResponseForm]:
        """Return the request with the items of stored responses, and with the decision to store its own.

        `last`: the last response of the request's connection. Raises InvalidRequest, StateUnavailable.
        """
        form = parsed.form
        is_stored = form.store is not False and self._store.is_up
        if form.store and not is_stored:
            raise StateUnavailable(
                "The database cannot be used now, so the response cannot be stored. Send store: false, or retry.",
                param="store",
                retry_after_s=_RETRY_S,
            )
        before: list[PlainItem] = []
        size = 0
        if form.previous_response_id is not None:
            previous = await self._previous(form.previous_response_id, tenant, last)
            before, size = [*previous.items, *previous.response["output"]], previous.size
            self._check_size(size)
        items = await self._with_referenced(form.items, before, tenant)
        if before or items is not form.items:
            self._check_size(size + len(await asyncio.to_thread(orjson.dumps, items)))
        if before and len(before) + len(items) > MAX_MESSAGES:
            raise InvalidRequest(
                f"The conversation has {len(before) + len(items)} items; at most {MAX_MESSAGES} are allowed."
                " Begin a new one.",
                param="input",
            )
        whole = continued(replace(parsed, form=replace(form, is_stored=is_stored)), before, items)
        # An open stream keeps its form, and needs the items only to keep them.
        is_kept = is_stored or last is not None
        return whole if is_kept else replace(whole, form=replace(whole.form, items=()))

    async def find(self, tenant: str, response_id: str) -> Kept:
        """Return a stored response. Raises ResponseNotFound, StateUnavailable."""
        if (kept := await self._store.find(tenant, response_id)) is None:
            raise ResponseNotFound(response_id)
        return kept

    async def remove(self, tenant: str, response_id: str) -> None:
        """Remove a stored response. Raises ResponseNotFound, StateUnavailable."""
        if not await self._store.remove(tenant, response_id):
            raise ResponseNotFound(response_id)

    def keeping(self, sink: Sink, encoder: ResponsesEncoder, tenant: str, last: LastResponse | None = None) -> Sink:
        """Return a sink that also stores the response if its request allows that, or else keeps it as the last one."""
        is_kept = encoder.form.is_stored or last is not None
        return _KeepingSink(sink, encoder, self._store, tenant, last) if is_kept else sink

    def _check_size(self, size: int) -> None:
        if size > (most := self._max_bytes()):
            raise InvalidRequest(
                f"The conversation has {size:,} bytes; at most {most:,} are allowed. Begin a new one.", param="input"
            )

    async def _previous(self, response_id: str, tenant: str, last: LastResponse | None) -> Kept:
        """Return the response that a request continues."""
        if last is not None and (kept := await last.take(tenant, response_id)) is not None:
            return kept
        kept = await self._store.find(tenant, response_id)
        if kept is None:
            raise PreviousResponseNotFound(response_id)
        if is_unfinished(kept.response):
            raise InvalidRequest(
                f"Response `{response_id[:64]}` is not complete. Wait for its end, or cancel it.",
                param="previous_response_id",
            )
        return kept

    async def _with_referenced(
        self, items: tuple[PlainItem, ...], before: list[PlainItem], tenant: str
    ) -> tuple[PlainItem, ...]:
        """Return the items with references replaced by the items that they name."""
        places = [at for at, item in enumerate(items) if item["type"] == "item_reference"]
        if len(places) > _MAX_REFERENCES:
            raise InvalidRequest(f"At most {_MAX_REFERENCES} references are allowed: send items.", param="input")
        if not places:
            return items
        known = {item["id"]: item for item in before if "id" in item}
        found = list(items)
        for at in places:
            item_id = items[at]["id"]
            if item_id not in known:
                known |= await self._output_of(item_id, tenant)
            if item_id not in known:
                raise InvalidRequest(
                    f"Item `{item_id[:64]}` was not found. Send the item itself.", param=f"input[{at}].id"
                )
            found[at] = known[item_id]
        return tuple(found)

    async def _output_of(self, item_id: str, tenant: str) -> dict[str, PlainItem]:
        """Return the output of the response that an item belongs to, by id."""
        match = _ITEM_ID.fullmatch(item_id)
        kept = await self._store.find(tenant, f"resp_{match[1]}") if match else None
        return {item["id"]: item for item in kept.response["output"]} if kept else {}


class _KeepingSink:
    """Passes events on. Stores the response before the client learns that it is complete."""

    def __init__(
        self, sink: Sink, encoder: ResponsesEncoder, store: ResponseStore, tenant: str, last: LastResponse | None
    ) -> None:
        self._sink = sink
        self._encoder = encoder
        self._store = store
        self._tenant = tenant
        self._last = last

    def take(self, event: Event) -> bool:
        return self._sink.take(event)

    async def give(self, event: Event) -> None:
        if isinstance(event, Finished):
            await self._keep(event)
        await self._sink.give(event)

    async def _keep(self, event: Finished) -> None:
        """Store the response, or keep it for its connection. A failed store shows in it, unless the client insists."""
        form = self._encoder.form
        kept = Kept(self._encoder.finished(event.usage), list(form.items))
        if form.is_stored:
            try:
                await self._store.save(self._tenant, kept)
            except StateUnavailable:
                if form.store:
                    raise
                self._encoder.is_stored = False
            else:
                return
        if self._last is not None:
            await self._last.keep(self._tenant, kept)

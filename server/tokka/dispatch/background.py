"""Responses that run in the background: their events are stored while they are generated, and can be read again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import structlog

from tokka.accounts.event_log import EventLog
from tokka.accounts.responses import Kept, ResponseStore, is_unfinished
from tokka.admission.allowance import Allowance
from tokka.core import Event, Finished, GenerateRequest, RequestRecord
from tokka.dispatch.dispatcher import Dispatcher
from tokka.dispatch.ending import outcome_of
from tokka.dispatch.prompt_log import prompt_fields
from tokka.errors import (
    GenerationFailed,
    InvalidRequest,
    ResponseInterrupted,
    ResponseNotFound,
    StateUnavailable,
    TokkaError,
)
from tokka.protocol import sse
from tokka.protocol.generation import ParsedGeneration
from tokka.protocol.responses.encoder import ResponsesEncoder
from tokka.protocol.responses.replay import end_event, interrupted, is_end, replayed
from tokka.protocol.responses.resource import ResponseForm

log = structlog.get_logger("tokka.background")

# Seconds between two writes of a running response's events. A killed server loses the events since the last write that
# succeeded.
_FLUSH_S = 1.0
# Seconds without a sign of life after which a response's server is taken for dead. A write to a stalled database takes
# 15 s, and the clocks of two servers may differ.
_SILENCE_S = 60.0
# Attempts to store the end of a response, and seconds between two.
_FINISH_TRIES, _RETRY_S = 60, 1.0
# Seconds to wait for the end of a response that was cancelled.
_CLOSE_S = 5.0
_CLOSING = "closing"


@dataclass
class Run:
    """A response that this server generates in the background."""

    id: str
    tenant: str
    encoder: ResponsesEncoder
    # The response before it begins.
    queued: dict[str, Any] = field(default_factory=dict)
    log: EventLog = field(default_factory=EventLog)
    # Events that followers may see. The last ones wait until the response is stored.
    visible: int = 0
    # The response as it ended in the database, and its last events, if they differ from the generated ones.
    stored: dict[str, Any] | None = None
    stored_end: list[bytes] = field(default_factory=list)
    is_generating: bool = True
    is_over: bool = False
    # Set and replaced when there are new events, or none will follow.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def add(self, events: Iterable[bytes]) -> None:
        """Append events and show them to followers."""
        self.hold(events)
        self._show()

    def hold(self, events: Iterable[bytes]) -> None:
        """Append events that followers may see at the end."""
        self.log.extend(events)

    def end(self) -> None:
        self.is_over = True
        self._show()

    def replace_end(self, response: dict[str, Any], events: list[bytes]) -> None:
        """Show another end in place of the generated one."""
        self.stored, self.stored_end = response, events

    def response(self) -> dict[str, Any]:
        return self.stored or self.encoder.response()

    def events_after(self, number: int) -> list[bytes]:
        shown = list(islice(self.log.after(number), max(0, self.visible - number - 1)))
        return shown + self.stored_end[max(0, number + 1 - self.visible) :]

    def _show(self) -> None:
        if not self.stored_end:
            self.visible = len(self.log)
        self.changed.set()
        self.changed = asyncio.Event()

    # -- as the sink of its generation ------------------------------------------------------------------------------

    def take(self, event: Event) -> bool:
        self.add(self.encoder.encode(event))
        return True

    async def give(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.hold(self.encoder.encode(event))
        else:
            self.take(event)


class Background:
    """Starts, follows and cancels responses in the background."""

    def __init__(
        self,
        store: ResponseStore,
        dispatcher: Dispatcher,
        fingerprint: str,
        settle: Callable[[RequestRecord, Allowance], None],
    ) -> None:
        """`settle`: counts a finished request, and returns its unused tokens."""
        self._store = store
        self._dispatcher = dispatcher
        self._fingerprint = fingerprint
        self._settle = settle
        self._runs: dict[str, Run] = {}

    async def start(
        self, parsed: ParsedGeneration[ResponseForm], record: RequestRecord, allowance: Allowance, tenant: str
    ) -> Run:
        """Store a new response and begin to generate it. Raises every refusal that does not need the rendered prompt.

        From its return on, the run counts the request in a copy of the record, and settles the allowance.
        """
        form, request = parsed.form, parsed.request
        if not form.is_stored:
            if form.store is False:
                raise InvalidRequest("background needs a stored response: leave store out.", param="store")
            raise StateUnavailable("The database cannot be used now, and background needs it.", retry_after_s=5.0)
        self._dispatcher.check(request, record, allowance)
        run = Run(request.id, tenant, ResponsesEncoder(replace(form, items=()), request.id, self._fingerprint))
        run.add(run.encoder.queue())
        await self._store.save(tenant, Kept(run.encoder.response(), list(form.items)))
        run.queued = run.encoder.response()
        self._runs[run.id] = run
        # No await after this: a cancelled caller would not learn that the run owns the allowance.
        run.task = asyncio.create_task(self._run(run, request, replace(record, stream=True), allowance))
        return run

    def running(self, response_id: str) -> Run | None:
        return self._runs.get(response_id)

    async def current(self, kept: Kept, tenant: str) -> Kept:
        """Return a stored response as it is now. A response whose server has died becomes a failed one.

        Raises ResponseNotFound, StateUnavailable.
        """
        response = kept.response
        if not is_unfinished(response):
            return kept
        if run := self._runs.get(response["id"]):
            if run.task is not None and not is_unfinished(run.encoder.response()):
                # Nobody may see the end before it is stored.
                await asyncio.wait([run.task])
            return replace(kept, response=run.response())
        if time.time() * 1000 - kept.seen_at < _SILENCE_S * 1000:
            return kept
        events = await self._store.events(response["id"])
        failed, last = interrupted(response, len(events), ResponseInterrupted())
        events.extend(last)
        events.seal()
        return replace(kept, response=await self._store.finish(tenant, failed, events.unsaved[0]))

    async def follow(self, kept: Kept, tenant: str, after: int, keep_alive_s: float) -> AsyncIterator[bytes]:
        """Return the events of a response after one of them: stored ones, then new ones until it ends.

        Raises ResponseNotFound, StateUnavailable.
        """
        if run := self._runs.get(kept.response["id"]):
            return self._follow_run(run, after, keep_alive_s)
        kept = await self.current(kept, tenant)
        if not kept.response["background"]:
            return _ended(kept.response, replayed(kept.response)[after + 1 :], after)
        return self._follow_stored(kept, await self._store.events(kept.response["id"]), tenant, after, keep_alive_s)

    async def cancel(self, kept: Kept, tenant: str) -> dict[str, Any]:
        """End a response that runs in the background. Return it.

        Raises InvalidRequest, ResponseNotFound, StateUnavailable.
        """
        response = kept.response
        if not response["background"]:
            raise InvalidRequest("Only responses with background: true can be cancelled.", param="response_id")
        if run := self._runs.get(response["id"]):
            await self._end(run, "cancelled")
            if not run.is_over:
                raise StateUnavailable("The response ends, but the database cannot store that now.", retry_after_s=5.0)
            return run.response()
        current = (await self.current(kept, tenant)).response
        if is_unfinished(current):
            # Another server runs it, and notices this at its next write.
            return await self._store.finish(tenant, {**current, "status": "cancelled"}, None)
        return current

    async def close(self) -> None:
        """End all responses. They become failed ones."""
        await asyncio.gather(*(self._end(run, _CLOSING) for run in list(self._runs.values())))

    @staticmethod
    async def _end(run: Run, reason: str) -> None:
        """End a response, and wait until its end is stored."""
        assert run.task is not None
        # Let the task begin: a task that is cancelled before would not store its end.
        await asyncio.sleep(0)
        if run.is_generating:
            run.task.cancel(reason)
        await asyncio.wait([run.task], timeout=_CLOSE_S)

    async def _follow_run(self, run: Run, after: int, keep_alive_s: float) -> AsyncIterator[bytes]:
        while True:
            changed, is_over = run.changed, run.is_over
            for data in run.events_after(after):
                yield data
                after += 1
            if is_over:
                break
            try:
                await asyncio.wait_for(changed.wait(), keep_alive_s)
            except TimeoutError:
                yield sse.KEEP_ALIVE
        yield sse.DONE

    async def _follow_stored(
        self, kept: Kept, events: EventLog, tenant: str, after: int, keep_alive_s: float
    ) -> AsyncIterator[bytes]:
        """Yield stored events. While another server generates the response, look for new ones every second."""
        yielded_s = time.monotonic()
        while is_unfinished(kept.response):
            for data in events.after(after):
                yield data
                after += 1
                yielded_s = time.monotonic()
            await asyncio.sleep(min(_FLUSH_S, keep_alive_s))
            if time.monotonic() - yielded_s >= keep_alive_s:
                yield sse.KEEP_ALIVE
                yielded_s = time.monotonic()
            response_id = kept.response["id"]
            found = await self._store.find(tenant, response_id)
            try:
                if found is None:
                    raise ResponseNotFound(response_id)
                kept = await self.current(found, tenant)
            except ResponseNotFound:
                yield sse.DONE
                return
            events = await self._store.events(response_id)
        async for data in _ended(kept.response, events.after(after), after):
            yield data

    async def _run(self, run: Run, request: GenerateRequest, record: RequestRecord, allowance: Allowance) -> None:
        saving = asyncio.create_task(self._save(run))
        try:
            await self._generate(run, request, record, allowance)
        finally:
            run.is_generating = False
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            self._settle(record, allowance)
            log.info(
                "background_finished",
                response_id=run.id,
                tenant=record.tenant,
                model=record.model,
                outcome=record.outcome,
                reason=record.reason,
                prompt_tokens=record.prompt_tokens,
                completion_tokens=record.completion_tokens,
                **prompt_fields(record),
            )
            await self._finish(run)

    async def _generate(self, run: Run, request: GenerateRequest, record: RequestRecord, allowance: Allowance) -> None:
        """Generate the response. Every end becomes events of it."""
        try:
            generation = await self._dispatcher.open(request, record, allowance)
            try:
                await generation.run(run)
            finally:
                await generation.aclose()
        except asyncio.CancelledError as cancelled:
            record.outcome = record.outcome or "aborted"
            if cancelled.args == (_CLOSING,):
                record.status = ResponseInterrupted.status
                run.hold(run.encoder.fail(ResponseInterrupted()))
            else:
                run.hold(run.encoder.cancel())
        except TokkaError as error:
            record.status, record.reason = error.status, error.code
            record.outcome = record.outcome or outcome_of(error.status)
            run.hold(run.encoder.fail(error))
        except Exception as fault:
            record.status = GenerationFailed.status
            record.outcome, record.reason = "error", type(fault).__name__
            log.exception("background_failed")
            run.hold(run.encoder.fail(GenerationFailed()))

    async def _save(self, run: Run) -> None:
        """Store new events every second, until cancelled. Cancels a response that was ended or removed elsewhere."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            run.log.seal()
            try:
                is_wanted = await self._store_chunks(run)
            except StateUnavailable:
                continue
            if not is_wanted and run.task:
                run.task.cancel()
                return

    async def _store_chunks(self, run: Run) -> bool:
        """Store the sealed events, or at least a sign of life. Return False if the response is no longer wanted."""
        while True:
            chunk = run.log.unsaved[0] if run.log.unsaved else None
            if not await self._store.advance(run.id, chunk):
                return False
            del run.log.unsaved[:1]
            if not run.log.unsaved:
                return True

    async def _finish(self, run: Run) -> None:
        """Store the end of the response before its followers learn of it."""
        has_finished = False
        try:
            for _ in range(_FINISH_TRIES):
                if has_finished := await self._has_finished(run):
                    return
                await asyncio.sleep(_RETRY_S)
            log.error("response_lost", response_id=run.id, reason="the database was unavailable")
        finally:
            if not has_finished:
                # Readers of the database will take its server for dead.
                run.replace_end(*interrupted(run.encoder.response(), run.visible, ResponseInterrupted()))
            self._runs.pop(run.id, None)
            run.end()

    async def _has_finished(self, run: Run) -> bool:
        """Store the end. Return False if the database is unavailable."""
        run.log.seal()
        response = run.encoder.response()
        try:
            while len(run.log.unsaved) > 1 and await self._store.advance(run.id, run.log.unsaved[0]):
                del run.log.unsaved[:1]
            chunk = run.log.unsaved[0] if run.log.unsaved else None
            stored = await self._store.finish(run.tenant, response, chunk)
        except ResponseNotFound:
            # It was removed, so there is no other end.
            return True
        except StateUnavailable:
            return False
        if stored is not response:
            run.replace_end(stored, [end_event(stored, run.visible)])
        return True


async def _ended(response: dict[str, Any], events: Iterable[bytes], after: int) -> AsyncIterator[bytes]:
    """Yield the last events of a response that has ended, those after the number `after`.

    The client may have seen more events than were stored, or than a replay has. It then gets the end with the next
    number: clients skip events up to the number that they have.
    """
    last = b""
    for last in events:
        yield last
        after += 1
    if not is_end(last):
        yield end_event(response, after + 1)
    yield sse.DONE

"""The edge between memory and the database: keys and downtimes come from there, usage goes there, requests wait for
none of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from tokka.accounts.answers import Issued, NewKey
from tokka.accounts.calendar import periods_of
from tokka.accounts.downtimes import Downtimes
from tokka.accounts.keys import KeyRing
from tokka.accounts.leases import Leases
from tokka.accounts.tokens import Token
from tokka.accounts.usage import UsageBook
from tokka.accounts.worker import Worker
from tokka.core import RequestRecord, Spent
from tokka.errors import KeyNotFound, StartupError, StateUnavailable, TemporaryError
from tokka.store.failures import NotWritable, Unavailable
from tokka.store.rows import NOWHERE, Batch, KeyRow, ReportQuery, ReportRow, Totals

if TYPE_CHECKING:
    # It brings SQLAlchemy, which is imported while the engine starts already.
    from tokka.accounts.ledger import Ledger

log = structlog.get_logger("tokka.accounts")

Result = TypeVar("Result")

# A revoked key shall be refused within 2 s, and a killed server lose 1 s of usage at most.
_INTERVAL_S = 0.5
# Longer than the database's own time limits; an admin waits no longer either.
_PATIENCE_S = 15.0
_CLOSE_S = 5.0
_CLOSE_RETRY_S = 0.2
_RETRY_S = 5.0
# Between two tries to open a database at the start.
_OPEN_RETRY_S = 1.0


class Accounts:
    """Owns the one thread that talks to the database. Whatever happens to that, what is in memory goes on."""

    def __init__(
        self,
        ring: KeyRing,
        open_ledger: Callable[[], Ledger],
        *,
        is_optional: bool,
        book: UsageBook | None = None,
        patience_s: float = 0.0,
    ) -> None:
        """`open_ledger` blocks; it runs in the thread. `is_optional`: nobody has asked for a database.

        `patience_s`: how long to wait at the start for a database that is not there yet.
        """
        self.ring = ring
        self.book = book or UsageBook()
        self.downtimes = Downtimes()
        self.leases = Leases()
        # Tokens of a key's requests that run now. Set by the owner of these.
        self.reserved: Callable[[str], int] = lambda _: 0
        self._open_ledger = open_ledger
        self._is_optional = is_optional
        self._patience_s = patience_s
        self._ledger: Ledger | None = None
        self._worker: Worker | None = None
        self._turn = asyncio.Lock()
        # A batch that may be written or not is tried again as it is.
        self._writer = secrets.token_hex(16)
        self._number = 0
        self._batch: Batch | None = None
        # What was read last, and when.
        self._seen = NOWHERE
        self._read_at: int | None = None
        self.is_up = False
        # The keys of the start are logged by whoever starts.
        self._is_open = False

    async def open(self) -> None:
        """Read keys and totals, waiting for a database that is not there yet. Raises StartupError."""
        deadline = time.monotonic() + self._patience_s
        has_said = False
        while True:
            try:
                await self._open()
                return
            except StartupError as error:
                if error.exit_code != TemporaryError.exit_code or time.monotonic() >= deadline:
                    raise
                if not has_said:
                    has_said = True
                    log.warning("waiting_for_database", reason=str(error), at_most_s=self._patience_s)
            await asyncio.sleep(_OPEN_RETRY_S)

    async def _open(self) -> None:
        try:
            self._ledger = await self._run(self._open_ledger)
            await self._follow(self._ledger)
            await self._flush(self._ledger)
        except NotWritable as error:
            if not self._is_optional:
                raise
            log.warning("no_state_database", reason=str(error), consequence="keys and usage are not kept")
            return
        except Unavailable as error:
            # Opened, and then lost.
            assert self._ledger
            await self._run(self._ledger.close)
            raise error.at_start(self._ledger.place) from None
        self.is_up = self._is_open = True

    async def run(self) -> None:
        """Keep memory and database alike; runs until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.synchronize()

    async def close(self) -> None:
        """Write what is left, as far as the database takes it."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.synchronize()
                while self._ledger and self.book.pending:
                    # Another program may hold it for a moment.
                    await asyncio.sleep(_CLOSE_RETRY_S)
                    await self.synchronize()
                if self._ledger:
                    await self._run(partial(self._ledger.end, self._writer))
        except TimeoutError:
            log.warning("state_database_given_up", after_s=_CLOSE_S)
        if self._ledger and self.book.pending:
            log.error("usage_lost", entries=self.book.pending)
        if self._worker:
            self._worker.end()

    # -- the request path ---------------------------------------------------------------------------------------

    def count(self, record: RequestRecord) -> None:
        self.book.add(record, time.time())

    def spent(self, key_id: str) -> Spent:
        spent = self.book.spent(key_id, time.time())
        held = self.leases.held(key_id) if key_id in self.ring.quotas else None
        return spent if held is None else replace(spent, held=held - self.book.unwritten(key_id))

    def want(self, key_id: str, tokens: int) -> None:
        """Ask the servers that share the key's quotas for tokens; the answer comes with the next synchronisations."""
        self.leases.want(key_id, tokens, time.monotonic())

    async def issue(self, authorization: str | None) -> Token:
        """Return a token for the key of an Authorization header that was verified. Raises PermissionDenied as
        `KeyRing.issue` does, StateUnavailable for a key whose tokens nobody could check yet."""
        if found := self.ring.unlearnt(authorization, time.time()):
            # Every front end has to know it.
            row = await self._ask(lambda ledger: ledger.learn(found))
            self._apply([row] if row else [])
        return self.ring.issue(authorization, time.time())

    # -- for /admin ---------------------------------------------------------------------------------------------

    async def create(self, new: NewKey) -> Issued:
        issued = await self._ask(lambda ledger: ledger.create(new, int(time.time())))
        self._apply([issued.row])
        if new.limits.has_quota:
            # Its lease: the key is usable from now on.
            await self.synchronize()
        return issued

    async def rotate(self, key_id: str, grace_s: int) -> Issued:
        """Raises KeyNotFound."""
        issued = await self._ask(lambda ledger: ledger.rotate(key_id, grace_s, int(time.time())))
        if issued is None:
            raise KeyNotFound(key_id)
        self._apply([issued.row])
        return issued

    async def revoke(self, key_id: str) -> KeyRow:
        """Raises KeyNotFound."""
        row = await self._ask(lambda ledger: ledger.revoke(key_id, int(time.time())))
        if row is None:
            raise KeyNotFound(key_id)
        self._apply([row])
        return row

    async def report(self, query: ReportQuery) -> list[ReportRow]:
        """Sum up usage, up to this moment."""
        await self.synchronize()
        return await self._ask(lambda ledger: ledger.report(query))

    async def _ask(self, question: Callable[[Ledger], Result]) -> Result:
        """Raises StateUnavailable."""
        ledger = self._ledger
        if ledger is None:
            raise StateUnavailable("This server keeps no keys and no usage: it has no database.", should_retry=False)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._run(lambda: question(ledger))
        except (Unavailable, TimeoutError) as error:
            self._note_down(error.reason if isinstance(error, Unavailable) else "it does not answer")
            raise StateUnavailable(
                "The database of keys and usage cannot be used now.", retry_after_s=_RETRY_S
            ) from None

    # -- the database -------------------------------------------------------------------------------------------

    async def synchronize(self) -> None:
        """Take over changed keys and downtimes, write usage, refresh totals. Never raises: what failed is tried again
        next time."""
        async with self._turn:
            ledger = self._ledger
            if ledger is None:
                self.book.settle(self.book.take(), Totals(periods_of(time.time()), {}, 0))
                return
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    if not self.is_up:
                        await self._run(partial(ledger.open, self.ring.rows))
                    # Keys first: a revoked one is refused also while nothing can be written.
                    await self._follow(ledger)
                    await self._flush(ledger)
            except TimeoutError:
                self._note_down("it does not answer")
            except Unavailable as error:
                self._note_down(error.reason)
            except StartupError as error:
                self._note_down(str(error))
            except Exception as fault:
                # The text may hold what was to be written.
                self._note_down(f"unexpected {type(fault).__name__}")
            else:
                self._note_up()

    async def _run(self, job: Callable[[], Result]) -> Result:
        if self._worker is None:
            self._worker = Worker("accounts")
        return await self._worker.run(job)

    async def _follow(self, ledger: Ledger) -> None:
        rows, self._seen = await self._run(partial(ledger.changes, self._seen, self.ring.rows))
        self._apply(rows)
        if (downtimes := await self._run(partial(ledger.downtimes, int(time.time())))) is not None:
            self.downtimes.apply(downtimes)

    def _apply(self, rows: Iterable[KeyRow]) -> None:
        was_protected, now_s = self.ring.is_protected, time.time()
        self.ring.apply(rows, now_s)
        if self._is_open and self.ring.is_protected and not was_protected:
            log.warning("access", rule=self.ring.rule(now_s), reason="the first key was made")

    async def _flush(self, ledger: Ledger) -> None:
        if self._batch is None and (rows := self.book.take()):
            self._number += 1
            self._batch = Batch(self._writer, self._number, rows)
        totals = await self._run(partial(ledger.write, self._batch, periods_of(time.time()), self._read_at))
        rows = self._batch.rows if self._batch else ()
        self.book.settle(rows, totals)
        for row in rows:
            self.leases.write(row)
        self._batch, self._read_at = None, totals.at
        await self._lease(ledger)

    async def _lease(self, ledger: Ledger) -> None:
        now_s = time.time()
        if not (limits := self.ring.quotas):
            return
        claims = self.leases.begin(
            limits, lambda key_id: self.reserved(key_id) + self.book.unwritten(key_id), time.monotonic()
        )
        tokens, servers = await self._run(partial(ledger.lease, self._writer, claims, periods_of(now_s)))
        self.leases.settle(limits, tokens, servers)

    def _note_down(self, reason: str) -> None:
        if self.is_up:
            self.is_up = False
            log.warning("state_database_down", reason=reason, consequence="served from memory; usage is written later")

    def _note_up(self) -> None:
        if not self.is_up:
            self.is_up = True
            log.info("state_database_up")

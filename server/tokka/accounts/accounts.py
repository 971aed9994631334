"""Keep keys, downtimes, usage and quotas in memory and exchange them with the database. Requests use memory alone."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from tokka.accounts.admin_views import Issued, NewKey
from tokka.accounts.calendar import periods_of
from tokka.accounts.downtimes import Downtimes
from tokka.accounts.keys import KeyRing
from tokka.accounts.leases import Leases
from tokka.accounts.tokens import Token
from tokka.accounts.usage import UsageBook
from tokka.accounts.worker import Worker
from tokka.core import RequestRecord, Spent
from tokka.errors import KeyNotFound, StartupError, StateUnavailable, TemporaryError
from tokka.store.errors import NotWritable, Unavailable
from tokka.store.rows import NOWHERE, Batch, KeyRow, ReportQuery, ReportRow, Totals

if TYPE_CHECKING:
    # The ledger imports SQLAlchemy. A thread imports it later, while the engine starts.
    from tokka.accounts.ledger import Ledger

log = structlog.get_logger("tokka.accounts")

Result = TypeVar("Result")

# Seconds between two synchronisations. A revoked key must be refused within 2 s, and a killed server may lose at most
# 1 s of usage.
_INTERVAL_S = 0.5
# Maximum seconds of one synchronisation or one /admin query. Longer than the database's own time limits.
_PATIENCE_S = 15.0
# Maximum seconds to write the remaining usage at the end.
_CLOSE_S = 5.0
_CLOSE_RETRY_S = 0.2
_RETRY_S = 5.0
# Seconds between two attempts to open the database at the start.
_OPEN_RETRY_S = 1.0


class Accounts:
    """Own the one thread that talks to the database. If the database fails, keys and usage in memory stay in use."""

    def __init__(
        self,
        ring: KeyRing,
        open_ledger: Callable[[], Ledger],
        *,
        is_optional: bool,
        book: UsageBook | None = None,
        patience_s: float = 0.0,
    ) -> None:
        """Prepare without any input or output; `open` connects.

        `open_ledger` blocks, so it runs in the thread. `is_optional`: no setting names a database, so the server may
        run without one. `patience_s`: seconds to wait at the start for a database that is not available yet.
        """
        self.ring = ring
        self.book = book or UsageBook()
        self.downtimes = Downtimes()
        self.leases = Leases()
        # Returns the tokens that a key's requests have reserved. `app` replaces it.
        self.reserved: Callable[[str], int] = lambda _: 0
        self._open_ledger = open_ledger
        self._is_optional = is_optional
        self._patience_s = patience_s
        self._ledger: Ledger | None = None
        self._worker: Worker | None = None
        self._turn = asyncio.Lock()
        # A failed write may have been committed. The same batch is then sent again; its number prevents counting twice.
        self._writer = secrets.token_hex(16)
        self._number = 0
        self._batch: Batch | None = None
        # The database's state at the last read of keys, and the time of the last read of usage by the database's clock.
        self._seen = NOWHERE
        self._read_at: int | None = None
        self.is_up = False
        # False during the start: the caller of `open` logs the keys that exist then.
        self._is_open = False

    @property
    def has_database(self) -> bool:
        """Whether there is a database, also if it cannot be used now."""
        return self._ledger is not None

    async def open(self) -> None:
        """Read keys and totals. Waits up to `patience_s` for the database. Raises StartupError."""
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
            # The database was opened, then the connection was lost.
            assert self._ledger
            await self._run(self._ledger.close)
            raise error.at_start(self._ledger.place) from None
        self.is_up = self._is_open = True

    async def run(self) -> None:
        """Synchronise memory and database twice a second, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.synchronize()

    async def close(self) -> None:
        """Write the remaining usage within `_CLOSE_S` seconds, then end the thread. Logs the entries that are lost."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.synchronize()
                while self._ledger and self.book.pending:
                    # Another program may have locked the database for a moment.
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
        """Request tokens from the servers that share the key's quotas. They arrive with the next synchronisations."""
        self.leases.want(key_id, tokens, time.monotonic())

    async def issue(self, authorization: str | None) -> Token:
        """Return a token for the key of a verified Authorization header.

        Raises PermissionDenied as `KeyRing.issue` does. Raises StateUnavailable if the key's public half is not stored
        yet and the database cannot store it now.
        """
        if found := self.ring.unlearnt(authorization, time.time()):
            # All servers of the database must be able to check the token.
            row = await self.ask(lambda ledger: ledger.learn(found))
            self._apply([row] if row else [])
        return self.ring.issue(authorization, time.time())

    # -- for /admin ---------------------------------------------------------------------------------------------

    async def create(self, new: NewKey) -> Issued:
        """Store a new key. Raises StateUnavailable, as do the other methods for /admin."""
        issued = await self.ask(lambda ledger: ledger.create(new, int(time.time())))
        self._apply([issued.row])
        if new.limits.has_quota:
            # Get the key's lease, so that its first request is not refused.
            await self.synchronize()
        return issued

    async def rotate(self, key_id: str, grace_s: int) -> Issued:
        """Give a key a new secret. Raises KeyNotFound if the key does not exist or is revoked."""
        issued = await self.ask(lambda ledger: ledger.rotate(key_id, grace_s, int(time.time())))
        if issued is None:
            raise KeyNotFound(key_id)
        self._apply([issued.row])
        return issued

    async def revoke(self, key_id: str) -> KeyRow:
        """End a key. Raises KeyNotFound."""
        row = await self.ask(lambda ledger: ledger.revoke(key_id, int(time.time())))
        if row is None:
            raise KeyNotFound(key_id)
        self._apply([row])
        return row

    async def report(self, query: ReportQuery) -> list[ReportRow]:
        """Return sums of usage. Writes this server's usage first, so that the sums include it."""
        await self.synchronize()
        return await self.ask(lambda ledger: ledger.report(query))

    async def ask(self, question: Callable[[Ledger], Result]) -> Result:
        """Run a query in the thread. Raises StateUnavailable without a database, or after `_PATIENCE_S` seconds."""
        ledger = self._ledger
        if ledger is None:
            raise StateUnavailable(
                "This server has no database, so it stores no keys, usage or responses.", should_retry=False
            )
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._run(lambda: question(ledger))
        except (Unavailable, TimeoutError) as error:
            self._note_down(error.reason if isinstance(error, Unavailable) else "it does not answer")
            raise StateUnavailable("The database cannot be used now.", retry_after_s=_RETRY_S) from None

    # -- the database -------------------------------------------------------------------------------------------

    async def synchronize(self) -> None:
        """Read changed keys and downtimes, write usage, refresh totals. Never raises: the next call repeats lost work.

        Without a database, it adds the usage to the totals in memory.
        """
        async with self._turn:
            ledger = self._ledger
            if ledger is None:
                self.book.confirm(self.book.take(), Totals(periods_of(time.time()), {}, 0))
                return
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    if not self.is_up:
                        await self._run(partial(ledger.open, self.ring.rows))
                    # Keys first: the server then refuses a revoked key even while it cannot write.
                    await self._follow(ledger)
                    await self._flush(ledger)
            except TimeoutError:
                self._note_down("it does not answer")
            except Unavailable as error:
                self._note_down(error.reason)
            except StartupError as error:
                self._note_down(str(error))
            except Exception as fault:
                # The error's text may contain the data to be written.
                self._note_down(f"unexpected {type(fault).__name__}")
            else:
                self._note_up()

    async def _run(self, job: Callable[[], Result]) -> Result:
        if self._worker is None:
            self._worker = Worker("accounts")
        return await self._worker.run(job)

    async def _follow(self, ledger: Ledger) -> None:
        seen, known, now = self._seen, self.ring.rows, int(time.time())
        # One job, because each one wakes the thread and then the event loop.
        (rows, self._seen), downtimes = await self._run(lambda: (ledger.changes(seen, known), ledger.downtimes(now)))
        self._apply(rows)
        if downtimes is not None:
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
        self.book.confirm(rows, totals)
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
        self.leases.apply(limits, tokens, servers)

    def _note_down(self, reason: str) -> None:
        if self.is_up:
            self.is_up = False
            log.warning("state_database_down", reason=reason, consequence="served from memory; usage is written later")

    def _note_up(self) -> None:
        if not self.is_up:
            self.is_up = True
            log.info("state_database_up")

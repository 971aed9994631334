"""Synchronisation with the database, on a ledger that can fail, hang and lose its replies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.accounts.records import record
from tokka.accounts import accounts as module
from tokka.accounts.accounts import Accounts
from tokka.accounts.admin_views import NewKey
from tokka.accounts.keys import KeyRing
from tokka.accounts.ledger import Ledger, open_ledger
from tokka.accounts.worker import Worker
from tokka.downtime import Downtime
from tokka.errors import ConfigurationError, KeyNotFound, StateUnavailable
from tokka.store import keys
from tokka.store.errors import NotWritable, Unavailable
from tokka.store.rows import Batch, KeyRow, ReportQuery, TokenKey, Totals

ALICE = NewKey("alice", "t", frozenset({"inference"}))


class Flaky:
    """A real ledger with writes that can fail on demand, before or after the commit."""

    def __init__(self, folder: Path) -> None:
        self.real = open_ledger(None, folder, 1.0)
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def write(self, batch: Batch | None, *rest: Any) -> Totals:
        if batch:
            self.before()
        totals = self.real.write(batch, *rest)
        if batch:
            self.after()
        return totals


def fail() -> None:
    raise Unavailable("told to")


@pytest.fixture
def ledger(tmp_path: Path) -> Flaky:
    return Flaky(tmp_path)


def accounts_of(ledger: Flaky) -> Accounts:
    return Accounts(KeyRing(), lambda: ledger, is_optional=False)  # type: ignore[arg-type, return-value]


@pytest.fixture
async def accounts(ledger: Flaky) -> AsyncIterator[Accounts]:
    made = accounts_of(ledger)
    await made.open()
    yield made
    ledger.before = ledger.after = lambda: None
    await made.close()


def requests(ledger: Flaky | Ledger) -> int:
    return ledger.report(ReportQuery(0, 2**40, (), 2))[0].requests


async def test_usage_is_written_and_settled(accounts: Accounts, ledger: Flaky) -> None:
    accounts.count(record())
    await accounts.synchronize()
    assert (accounts.book.pending, requests(ledger)) == (0, 1)


async def test_a_failed_write_is_kept_and_made_up_for(accounts: Accounts, ledger: Flaky) -> None:
    ledger.before = fail
    with capture_logs() as logs:
        for _ in range(3):
            accounts.count(record())
            await accounts.synchronize()
        assert (accounts.is_up, accounts.book.pending, requests(ledger)) == (False, 2, 0)
        ledger.before = lambda: None
        # The failed batch is written first, then the usage after it.
        await accounts.synchronize()
        await accounts.synchronize()
    assert (accounts.is_up, accounts.book.pending, requests(ledger)) == (True, 0, 3)
    assert [line["event"] for line in logs] == ["state_database_down", "state_database_up"]
    assert logs[0]["reason"] == "told to"


async def test_write_counts_once_when_its_answer_is_lost(accounts: Accounts, ledger: Flaky) -> None:
    ledger.after = fail
    accounts.count(record())
    await accounts.synchronize()
    assert (accounts.book.pending, requests(ledger)) == (1, 1)
    accounts.count(record())
    ledger.after = lambda: None
    await accounts.synchronize()
    await accounts.synchronize()
    assert (accounts.book.pending, requests(ledger)) == (0, 2)


async def test_unexpected_error_neither_stops_accounts_nor_logs_data(accounts: Accounts, ledger: Flaky) -> None:
    def fault() -> None:
        raise ValueError("the tenant's name")

    ledger.before = fault
    accounts.count(record())
    with capture_logs() as logs:
        await accounts.synchronize()
    assert logs[0]["reason"] == "unexpected ValueError"
    ledger.before = lambda: None
    await accounts.synchronize()
    assert requests(ledger) == 1


async def test_a_revoked_key_is_refused_while_nothing_can_be_written(accounts: Accounts, ledger: Flaky) -> None:
    issued = await accounts.create(ALICE)
    ledger.before = fail
    accounts.count(record())
    ledger.real.revoke(issued.row.id, 5)
    await accounts.synchronize()
    (row,) = accounts.ring.rows
    assert (accounts.is_up, row.revoked_at) == (False, 5)


async def test_accounts_remember_the_downtime_when_the_database_is_down(
    accounts: Accounts, ledger: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time())
    planned = Downtime("down_1", now - 1, now + 600, "new GPUs")
    ledger.real.add_downtime(planned)
    await accounts.synchronize()
    monkeypatch.setattr(ledger.real, "changes", lambda *_: fail())
    await accounts.synchronize()
    assert (accounts.is_up, accounts.downtimes.current(now)) == (False, planned)
    monkeypatch.undo()
    ledger.real.remove_downtime(planned.id)
    await accounts.synchronize()
    assert (accounts.is_up, accounts.downtimes.current(now)) == (True, None)


async def test_accounts_read_the_downtime_when_they_open(ledger: Flaky) -> None:
    now = int(time.time())
    ledger.real.add_downtime(Downtime("down_1", now - 1, now + 600, "new GPUs"))
    starting = accounts_of(ledger)
    await starting.open()
    assert starting.downtimes.current(now)
    await starting.close()


async def test_accounts_give_up_a_hanging_write_and_check_it_later(
    accounts: Accounts, ledger: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    go_on = threading.Event()

    def hang() -> None:
        assert go_on.wait(20)

    ledger.after = hang
    accounts.count(record())
    await accounts.synchronize()
    assert not accounts.is_up
    with pytest.raises(StateUnavailable):
        await accounts.create(ALICE)
    go_on.set()
    monkeypatch.setattr(module, "_PATIENCE_S", 20)
    await accounts.synchronize()
    assert (accounts.is_up, accounts.book.pending, requests(ledger)) == (True, 0, 1)
    # The creation had not begun, so it was cancelled.
    assert accounts.ring.rows == []


async def test_the_end_waits_for_another_program_but_not_for_ever(
    ledger: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = accounts_of(ledger)
    await accounts.open()
    accounts.count(record())
    tries = 0

    def twice() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            fail()

    ledger.before = twice
    await accounts.close()
    assert accounts.book.pending == 0
    accounts.count(record())
    ledger.before = fail
    monkeypatch.setattr(module, "_CLOSE_S", 0.5)
    with capture_logs() as logs:
        await asyncio.wait_for(accounts.close(), 10)
    assert logs[-1] == {"event": "usage_lost", "entries": 1, "log_level": "error"}


async def test_a_key_is_good_at_once_and_gone_at_once(accounts: Accounts) -> None:
    issued = await accounts.create(ALICE)
    assert accounts.ring.verify(f"Bearer {issued.secret}", 0).tenant == "t"
    await accounts.revoke(issued.row.id)
    assert [row.revoked_at is None for row in accounts.ring.rows] == [False]
    with pytest.raises(KeyNotFound):
        await accounts.rotate(issued.row.id, 60)


async def test_restarted_accounts_read_the_spent_tokens(accounts: Accounts, tmp_path: Path) -> None:
    accounts.count(record())
    await accounts.synchronize()
    again = Accounts(KeyRing(), lambda: open_ledger(None, tmp_path, 1.0), is_optional=False)
    await again.open()
    assert again.spent("k").month == accounts.spent("k").month == 15
    await again.close()


async def test_without_a_database_quotas_count_in_memory() -> None:
    def refuse() -> Ledger:
        raise NotWritable("read-only")

    with pytest.raises(ConfigurationError):
        await Accounts(KeyRing(), refuse, is_optional=False).open()
    accounts = Accounts(KeyRing(), refuse, is_optional=True)
    with capture_logs() as logs:
        await accounts.open()
    assert logs[0]["event"] == "no_state_database"
    for _ in range(2):
        accounts.count(record())
        await accounts.synchronize()
    assert (accounts.book.pending, accounts.spent("k").day) == (0, 30)
    with pytest.raises(StateUnavailable):
        await accounts.create(ALICE)
    await accounts.close()


async def test_keys_and_usage_that_another_program_wrote_are_seen(accounts: Accounts, tmp_path: Path) -> None:
    await accounts.synchronize()
    other = open_ledger(None, tmp_path, 1.0)
    issued = other.create(ALICE, 5)
    await accounts.synchronize()
    assert [row.id for row in accounts.ring.rows] == [issued.row.id]
    other.revoke(issued.row.id, 6)
    await accounts.synchronize()
    assert [row.revoked_at for row in accounts.ring.rows] == [6]
    other.close()


async def test_a_key_made_after_its_admin_has_given_up_is_taken_over(accounts: Accounts, ledger: Flaky) -> None:
    await accounts.synchronize()
    issued = ledger.real.create(ALICE, 5)
    await accounts.synchronize()
    assert [row.id for row in accounts.ring.rows] == [issued.row.id]


# -- tokens of keys without a stored public half ----------------------------------------------------------------


def forget_token_keys(ledger: Ledger, row: KeyRow) -> None:
    """Bring the row into its state after the migration."""
    with ledger._database.transaction(write=True) as connection:
        keys.change(connection, replace(row, token_key=None, previous_token_key=None))


async def test_old_keys_token_is_known_to_every_front_end(accounts: Accounts, tmp_path: Path) -> None:
    other = open_ledger(None, tmp_path, 1.0)
    created = other.create(ALICE, 5)
    changed = other.rotate(created.row.id, 3600, int(time.time()))
    assert changed is not None
    forget_token_keys(other, changed.row)
    await accounts.synchronize()
    tokens = [await accounts.issue(f"Bearer {secret}") for secret in (created.secret, changed.secret)]
    ring = KeyRing()
    ring.apply(other.all_keys(), time.time())
    for known in (accounts.ring, ring):
        for token in tokens:
            assert known.verify(f"Bearer {token.text}", time.time()).id == created.row.id
    other.close()


async def test_old_key_gets_no_token_while_the_database_is_down(
    accounts: Accounts, ledger: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = ledger.real.create(ALICE, 5), ledger.real.create(ALICE, 5)
    forget_token_keys(ledger.real, old.row)
    await accounts.synchronize()
    monkeypatch.setattr(ledger, "learn", lambda _: fail())
    with pytest.raises(StateUnavailable):
        await accounts.issue(f"Bearer {old.secret}")
    # The old key itself is valid, and other keys get their tokens.
    assert accounts.ring.verify(f"Bearer {old.secret}", time.time()).id == old.row.id
    assert await accounts.issue(f"Bearer {new.secret}")


async def test_old_key_that_was_rotated_meanwhile_is_left_alone(ledger: Flaky) -> None:
    created = ledger.real.create(ALICE, 5)
    forget_token_keys(ledger.real, created.row)
    for _ in range(2):
        ledger.real.rotate(created.row.id, 60, 5)
    (before,) = ledger.real.all_keys()
    assert ledger.real.learn(TokenKey(created.row.id, created.row.digest, "00" * 32)) is None
    assert ledger.real.learn(TokenKey("key_unknown", created.row.digest, "00" * 32)) is None
    assert ledger.real.all_keys() == [before]


async def test_synchronization_without_news_takes_two_jobs(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    await accounts.synchronize()
    run, jobs = Worker.run, 0

    async def counted(worker: Worker, job: Any) -> Any:
        nonlocal jobs
        jobs += 1
        return await run(worker, job)

    monkeypatch.setattr(Worker, "run", counted)
    await accounts.synchronize()
    assert jobs == 2

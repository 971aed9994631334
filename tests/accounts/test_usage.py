"""Usage in memory: sums that are exact in any order of writes, and quotas by calendar day and month."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.accounts.records import KEY, record
from tokka.accounts.calendar import HOUR_S, periods_of
from tokka.accounts.usage import UsageBook
from tokka.core import Key, Spent
from tokka.store.rows import Totals, UsageRow


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NOON = at("2026-11-15T12:30")


def confirmed(book: UsageBook, now_s: float, **by_key: tuple[int, int]) -> None:
    book.confirm(book.take(), Totals(periods_of(now_s), by_key, 0))


def test_requests_add_up_by_hour_key_tenant_and_model() -> None:
    book = UsageBook()
    other = replace(KEY, id="other")
    for now_s, given_record in (
        (NOON, record()),
        (NOON + 60, record(prompt_tokens=1)),
        (NOON + HOUR_S, record()),
        (NOON, record(key=other)),
        (NOON, record(model="")),
    ):
        book.add(given_record, now_s)
    hour = int(at("2026-11-15T12:00"))
    assert sorted(book.take(), key=repr) == sorted(
        [
            UsageRow(hour, "k", "t", "m", 2, 11, 8, 10),
            UsageRow(hour + HOUR_S, "k", "t", "m", 1, 10, 4, 5),
            UsageRow(hour, "other", "t", "m", 1, 10, 4, 5),
            UsageRow(hour, "k", "t", "", 1, 10, 4, 5),
        ],
        key=repr,
    )


def test_a_request_of_nobody_is_nobodys_usage() -> None:
    book = UsageBook()
    book.add(record(key=None), NOON)
    assert book.pending == 0


@pytest.mark.parametrize("outcome", ["stop", "aborted", "timeout", "rejected", "invalid", "error"])
def test_every_outcome_counts(outcome: Any) -> None:
    book = UsageBook()
    book.add(record(outcome=outcome, prompt_tokens=0, completion_tokens=0), NOON)
    assert [row.requests for row in book.take()] == [1]


def test_taken_usage_is_pending_until_it_is_confirmed() -> None:
    book = UsageBook()
    book.add(record(), NOON)
    rows = book.take()
    assert (book.pending, book.spent("k", NOON)) == (1, Spent(15, 15))
    book.add(record(), NOON)
    assert (book.pending, book.spent("k", NOON)) == (2, Spent(30, 30))
    book.confirm(rows, Totals(periods_of(NOON), {"k": (15, 15)}, 0))
    assert (book.pending, book.spent("k", NOON)) == (1, Spent(30, 30))


def test_usage_of_other_servers_counts_when_it_is_read() -> None:
    book = UsageBook()
    confirmed(book, NOON, k=(100, 1000))
    book.add(record(), NOON)
    assert book.spent("k", NOON) == Spent(115, 1015)


@pytest.mark.parametrize(
    ("later", "spent"),
    [
        ("2026-11-15T23:59:59", Spent(115, 1015)),
        ("2026-11-16T00:00:00", Spent(0, 1015)),
        ("2026-11-30T23:59:59", Spent(0, 1015)),
        ("2026-12-01T00:00:00", Spent(0, 0)),
        ("2027-11-15T12:30:00", Spent(0, 0)),
    ],
)
@pytest.mark.parametrize("is_written", [False, True])
def test_quotas_start_anew_with_the_day_and_the_month(later: str, spent: Spent, is_written: bool) -> None:
    book = UsageBook()
    confirmed(book, NOON, k=(100, 1000))
    book.add(record(), NOON)
    if is_written:
        confirmed(book, NOON)
    assert book.spent("k", at(later)) == spent


def test_usage_of_yesterday_that_is_written_today_is_yesterdays() -> None:
    book = UsageBook()
    book.add(record(), NOON)
    tomorrow = NOON + 86400
    book.add(record(prompt_tokens=0), tomorrow)
    confirmed(book, tomorrow)
    assert book.spent("k", tomorrow) == Spent(5, 20)


def test_full_usage_book_drops_new_entries_and_keeps_old_ones() -> None:
    book = UsageBook(max_entries=2)
    for number in range(5):
        book.add(record(key=replace(KEY, id=f"k{number}")), NOON)
    book.add(record(key=replace(KEY, id="k0")), NOON)
    assert (book.pending, book.dropped) == (2, 3)
    assert {row.key_id: row.requests for row in book.take()} == {"k0": 2, "k1": 1}
    # Taken entries still count as pending.
    book.add(record(), NOON)
    assert (book.pending, book.dropped) == (2, 4)
    # Quotas still count dropped requests.
    assert book.spent("k4", NOON) == Spent(15, 15)


@given(st.text(max_size=2000))
def test_names_from_outside_fit_both_databases(name: str) -> None:
    book = UsageBook()
    book.add(record(key=Key(name, name, frozenset())), NOON)
    (row,) = book.take()
    for kept in (row.key_id, row.tenant):
        assert len(kept.encode()) <= 255
        assert "\0" not in kept
    assert book.spent(name, NOON) == Spent(15, 15)


@given(st.lists(st.sampled_from(["add", "write", "fail"]), max_size=40))
def test_spent_tokens_match_the_added_tokens_in_any_write_order(steps: list[str]) -> None:
    book = UsageBook()
    database = added = 0
    batch: tuple[UsageRow, ...] = ()
    for step in steps:
        if step == "add":
            book.add(record(), NOON)
            added += 15
        else:
            batch = batch or book.take()
            if step == "write":
                database += sum(row.tokens for row in batch)
                book.confirm(batch, Totals(periods_of(NOON), {"k": (database, database)}, 0))
                batch = ()
        assert book.spent("k", NOON) == Spent(added, added)
    assert sum(row.tokens for row in (*batch, *book.take())) + database == added

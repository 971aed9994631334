"""Allowances: reserved tokens cannot be used twice, unused tokens come back, and a refusal names the limit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.admission.allowance import Allowance, Allowances
from tokka.core import Key, Limits, Spent
from tokka.errors import QuotaExceeded, RateLimited, TokkaError


def key(**limits: Any) -> Key:
    return Key("k", "tenant", frozenset({"inference"}), Limits(**limits))


def allowances(spent: Spent | None = None) -> Allowances:
    return Allowances(lambda _: spent or Spent())


def refusal(action: Any, *arguments: Any) -> TokkaError:
    with pytest.raises(TokkaError) as refused:
        action(*arguments)
    return refused.value


def test_a_key_without_limits_is_never_refused_and_has_no_gauges() -> None:
    book = allowances()
    for _ in range(1000):
        allowance = book.open(key(), 0.0)
        allowance.run(1000)
        allowance.reserve(10**9, 0.0)
    assert book.gauges(key(), 0.0) == {}


def test_requests_a_minute() -> None:
    book, limited = allowances(), key(rpm=2)
    book.open(limited, 0.0)
    book.open(limited, 0.0)
    refused = refusal(book.open, limited, 0.0)
    assert isinstance(refused, RateLimited)
    assert (refused.type, refused.code) == ("requests", "rate_limit_exceeded")
    assert refused.retry_after_s == pytest.approx(30)
    assert refused.headers() == {"retry-after": "30", "retry-after-ms": "30000"}
    assert "2 requests a minute, 0 are left, and this request needs 1." in refused.message
    book.open(limited, 30.0)


def test_count_uses_only_the_request_limit() -> None:
    book, limited = allowances(Spent(day=5)), key(rpm=2, max_running=1, daily_tokens=1)
    book.count(limited, 0.0)
    book.count(limited, 0.0)
    assert refusal(book.count, limited, 0.0).headers()["retry-after"] == "30"
    assert book.gauges(limited, 0.0)["requests"].remaining == 0
    book.count(limited, 30.0)


def test_a_refusal_of_ours_gives_the_request_back() -> None:
    book, limited = allowances(), key(rpm=1)
    book.open(limited, 0.0).settle(0, 0.0, served=False)
    book.open(limited, 0.0).settle(0, 0.0)
    assert isinstance(refusal(book.open, limited, 0.0), RateLimited)


def test_settle_returns_unused_tokens_per_minute() -> None:
    book, limited = allowances(), key(tpm=100)
    first = book.open(limited, 0.0)
    first.reserve(80, 0.0)
    second = book.open(limited, 0.0)
    refused = refusal(second.reserve, 30, 0.0)
    assert isinstance(refused, RateLimited)
    assert refused.type == "tokens"
    assert refused.retry_after_s == pytest.approx(6.0)
    refused = refusal(second.reserve, 100, 0.0)
    assert refused.retry_after_s == pytest.approx(48.0)
    first.settle(20, 0.0)
    second.reserve(30, 0.0)
    assert book.gauges(limited, 0.0)["tokens"].remaining == 50


def test_a_request_larger_than_the_limit_is_not_worth_another_try() -> None:
    book = allowances()
    refused = refusal(book.open(key(tpm=100), 0.0).reserve, 101, 0.0)
    assert refused.headers() == {"x-should-retry": "false"}


def test_choices_at_once() -> None:
    book, limited = allowances(), key(max_running=3)
    first = book.open(limited, 0.0)
    first.run(2)
    assert isinstance(refusal(book.open(limited, 0.0).run, 2), RateLimited)
    # It fits once the running choices have ended, so a retry makes sense.
    assert refusal(book.open(limited, 0.0).run, 3).retry_after_s
    book.open(limited, 0.0).run(1)
    first.settle(0, 0.0)
    book.open(limited, 0.0).run(2)
    assert refusal(book.open(limited, 0.0).run, 4).should_retry is False


def test_prepared_tokens_are_paid_for_by_an_invalid_request() -> None:
    book, limited = allowances(), key(tpm=100)
    invalid = book.open(limited, 0.0)
    invalid.prepare(60, 0.0)
    assert isinstance(refusal(book.open(limited, 0.0).prepare, 60, 0.0), RateLimited)
    invalid.settle(0, 0.0)
    assert book.gauges(limited, 0.0)["tokens"].remaining == 40


def test_prepared_tokens_come_back_when_the_server_refuses() -> None:
    book, limited = allowances(), key(tpm=100)
    refused = book.open(limited, 0.0)
    refused.prepare(60, 0.0)
    refused.settle(0, 0.0, served=False)
    assert book.gauges(limited, 0.0)["tokens"].remaining == 100


def test_reserve_adds_only_the_missing_tokens_after_prepare() -> None:
    book, limited = allowances(Spent(day=10)), key(tpm=100, daily_tokens=100)
    allowance = book.open(limited, 0.0)
    allowance.prepare(30, 0.0)
    assert allowance.room() == 90
    allowance.reserve(31, 0.0)
    assert book.gauges(limited, 0.0)["tokens"].remaining == 69
    allowance.reserve(80, 0.0)
    assert book.gauges(limited, 0.0)["tokens"].remaining == 20
    refused = refusal(allowance.reserve, 101, 0.0)
    assert isinstance(refused, QuotaExceeded)


def test_refusal_counts_the_tokens_of_its_own_request_as_left() -> None:
    book, limited = allowances(), key(tpm=100)
    book.open(limited, 0.0).reserve(60, 0.0)
    second = book.open(limited, 0.0)
    second.prepare(30, 0.0)
    assert "40 are left, and this request needs 50" in refusal(second.reserve, 50, 0.0).message


@pytest.mark.parametrize(("limit", "spent"), [("daily_tokens", Spent(day=90)), ("monthly_tokens", Spent(month=90))])
def test_quota_counts_spent_and_in_flight_tokens(limit: str, spent: Spent) -> None:
    book, limited = allowances(spent), key(**{limit: 100})
    first = book.open(limited, 0.0)
    first.reserve(8, 0.0)
    second = book.open(limited, 0.0)
    refused = refusal(second.reserve, 3, 0.0)
    assert isinstance(refused, QuotaExceeded)
    assert refused.code == "insufficient_quota"
    assert refused.headers() == {"x-should-retry": "false"}
    second.reserve(2, 0.0)
    # The quota is used up, so the next request is refused before it is rendered.
    assert isinstance(refusal(book.open, limited, 0.0), QuotaExceeded)


def test_quota_lets_its_last_token_be_used() -> None:
    book = allowances(Spent(day=99))
    book.open(key(daily_tokens=100), 0.0).reserve(1, 0.0)
    assert isinstance(refusal(book.open, key(daily_tokens=100), 0.0), QuotaExceeded)


def test_settle_returns_reserved_tokens_to_the_quota() -> None:
    book, limited = allowances(), key(daily_tokens=100)
    first = book.open(limited, 0.0)
    first.reserve(80, 0.0)
    first.settle(0, 0.0)
    assert book.open(limited, 0.0).room() == 100


def test_overspent_quota_has_nothing_left() -> None:
    message = refusal(allowances(Spent(day=120)).open, key(daily_tokens=100), 0.0).message
    assert "0 are left, and it may use 1" in message


def test_room_is_the_lowest_of_the_remaining_limits() -> None:
    book = allowances(Spent(day=30, month=900))
    assert book.open(key(tpm=500), 0.0).room() == 500
    assert book.open(key(tpm=500, daily_tokens=100), 0.0).room() == 70
    assert book.open(key(daily_tokens=100, monthly_tokens=950), 0.0).room() == 50
    assert book.open(key(), 0.0).room() is None


def test_settling_twice_gives_back_once() -> None:
    book, limited = allowances(), key(max_running=1)
    first = book.open(limited, 0.0)
    first.run(1)
    first.settle(0, 0.0)
    book.open(limited, 0.0).run(1)
    first.settle(0, 0.0)
    assert isinstance(refusal(book.open(limited, 0.0).run, 1), RateLimited)


def test_changed_limits_count_in_flight_requests() -> None:
    book = allowances()
    book.open(key(max_running=2), 0.0).run(2)
    assert isinstance(refusal(book.open(key(max_running=2, rpm=5), 0.0).run, 1), RateLimited)
    book.open(key(max_running=3, rpm=5), 0.0).run(1)
    assert book.gauges(key(max_running=3, rpm=5), 0.0)["requests"].remaining == 4


request = st.tuples(st.integers(1, 40), st.floats(0, 1), st.integers(0, 5))


@given(st.integers(20, 200), st.lists(request, max_size=60))
def test_a_quota_is_never_overshot_however_requests_overlap(quota: int, requests: list[tuple[int, float, int]]) -> None:
    spent: Counter[str] = Counter()
    book, limited = Allowances(lambda name: Spent(day=spent[name])), key(daily_tokens=quota)
    running: list[tuple[Allowance, int]] = []
    for reserve, share, keep in requests:
        while len(running) > keep:
            ended, used = running.pop(0)
            spent["k"] += used
            ended.settle(used, 0.0)
        try:
            allowance = book.open(limited, 0.0)
        except QuotaExceeded:
            continue
        try:
            allowance.reserve(reserve, 0.0)
            running.append((allowance, round(reserve * share)))
        except QuotaExceeded:
            allowance.settle(0, 0.0)
    assert spent["k"] + sum(used for _, used in running) <= quota


def test_allowance_that_never_ran_frees_no_place() -> None:
    book, limited = allowances(), key(max_running=1)
    running = book.open(limited, 0.0)
    running.run(1)
    book.open(limited, 0.0).settle(0, 0.0)
    assert "1 are in flight" in refusal(book.open(limited, 0.0).run, 1).message
    running.settle(0, 0.0)
    book.open(limited, 0.0).run(1)


def test_allowance_without_a_prepared_prompt_costs_no_token() -> None:
    book, limited = allowances(), key(tpm=100)
    allowance = book.open(limited, 0.0)
    allowance.reserve(80, 0.0)
    allowance.settle(0, 0.0)
    assert book.gauges(limited, 0.0)["tokens"].remaining == 100


def test_quota_refusal_names_the_tokens_left() -> None:
    allowance = allowances(Spent(day=7)).open(key(daily_tokens=10), 0.0)
    assert "3 are left, and it may use 4" in refusal(allowance.reserve, 4, 0.0).message

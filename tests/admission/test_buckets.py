"""Token buckets: they give at most the saved and refilled tokens, and predict exactly when there are enough."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.admission.buckets import Bucket


def test_a_full_bucket_gives_all_of_it_at_once_and_then_nothing() -> None:
    bucket = Bucket(60, 0.0)
    assert bucket.wait_s(60, 0.0) == 0
    bucket.take(60, 0.0)
    assert bucket.remaining(0.0) == 0
    assert bucket.wait_s(1, 0.0) == pytest.approx(1.0)


def test_more_than_it_ever_holds_never_comes() -> None:
    assert Bucket(60, 0.0).wait_s(61, 0.0) == math.inf


def test_it_never_holds_more_than_its_size() -> None:
    bucket = Bucket(60, 0.0)
    assert bucket.remaining(3600.0) == 60
    bucket.give_back(10, 3600.0)
    assert bucket.remaining(3600.0) == 60


def test_a_clock_that_goes_back_fills_nothing() -> None:
    bucket = Bucket(60, 100.0)
    bucket.take(60, 100.0)
    assert bucket.remaining(50.0) == 0
    assert bucket.remaining(101.0) == 1


def test_reset_is_when_it_is_full_again() -> None:
    bucket = Bucket(120, 0.0)
    bucket.take(30, 0.0)
    assert bucket.reset_s(0.0) == pytest.approx(15.0)
    assert bucket.reset_s(15.0) == 0


steps = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), min_size=1, max_size=60)


@given(st.integers(1, 600), steps)
def test_bucket_admits_a_request_exactly_after_its_wait(size: int, asked: list[tuple[float, int]]) -> None:
    bucket = Bucket(size, 0.0)
    now_s = 0.0
    for passed_s, amount in asked:
        now_s += passed_s
        wait_s = bucket.wait_s(amount, now_s)
        if math.isinf(wait_s):
            assert amount > size
            continue
        if wait_s > 0.01:
            assert bucket.wait_s(amount, now_s + wait_s - 0.01) > 0
        now_s += wait_s
        assert bucket.wait_s(amount, now_s) == 0
        bucket.take(amount, now_s)


@given(st.integers(1, 600), steps)
def test_no_more_is_given_than_was_there_and_has_come_in(size: int, asked: list[tuple[float, int]]) -> None:
    bucket = Bucket(size, 0.0)
    now_s, given_out = 0.0, 0
    for passed_s, amount in asked:
        now_s += passed_s
        if bucket.wait_s(amount, now_s) == 0:
            bucket.take(amount, now_s)
            given_out += amount
        assert given_out <= size + now_s * size / 60 + 1e-3

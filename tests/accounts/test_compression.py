"""Compressed documents come back whole, and never as more than their size says."""

from __future__ import annotations

from tokka.accounts.compression import compressed, inflated


def test_inflation_stops_at_the_size() -> None:
    small = compressed(b"x" * 1_000_000)
    assert len(small) < 10_000
    assert inflated(small, 1_000_000) == b"x" * 1_000_000
    assert inflated(small, 1000) == b"x" * 1000
    assert inflated(small, 0) == b"x"

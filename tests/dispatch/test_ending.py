"""Outcomes of refused requests, by status."""

from __future__ import annotations

import pytest

from tokka.dispatch.ending import outcome_of


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(400, "invalid"), (404, "invalid"), (401, "rejected"), (429, "rejected"), (503, "rejected"), (504, "timeout")],
)
def test_outcome_follows_the_status(status: int, outcome: str) -> None:
    assert outcome_of(status) == outcome

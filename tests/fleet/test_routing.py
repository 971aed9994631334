"""Which replica a request is prepared on, and whether it stays there after it queued."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.fleet.routing import Candidate, choose, stays


def one(requests: int, cached: float = 0.0, most: int = 8) -> Candidate:
    return Candidate(requests, most, cached)


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([one(3), one(2)], 1),
        ([one(0), one(0)], 0),
        # The longest prefix wins within the bound of two requests.
        ([one(0), one(2, cached=0.5)], 1),
        ([one(0), one(3, cached=0.5)], 0),
        ([one(1, cached=0.2), one(2, cached=0.5)], 1),
        # Of a large replica, the bound is a quarter.
        ([one(0, most=100), one(25, cached=0.5, most=100)], 1),
        ([one(0, most=100), one(26, cached=0.5, most=100)], 0),
        # Load is relative to what a replica can run.
        ([one(3, most=4), one(4, most=8)], 1),
    ],
)
def test_choice_of_a_replica(candidates: list[Candidate], chosen: int) -> None:
    assert choose(candidates) == chosen


@pytest.mark.parametrize(
    ("own", "admitted", "others", "remains"),
    [
        (one(9), 2, [(one(0), 0)], True),
        (one(9), 3, [(one(0), 0)], False),
        (one(9), 3, [(one(9), 3), (one(0), 0)], False),
        # The other one is preparing its requests.
        (one(9), 3, [(one(9), 0)], True),
        # A full replica gives the request to any that is not full.
        (one(9), 8, [(one(9), 7)], False),
        (one(9), 8, [(one(9), 8)], True),
        (one(2, most=1), 1, [(one(0, most=1), 0)], False),
        # A cached prefix is worth a quarter of a large replica.
        (one(99, cached=0.5, most=100), 25, [(one(0, most=100), 0)], True),
        (one(99, most=100), 25, [(one(0, most=100), 0)], False),
        (one(99, cached=0.5, most=100), 26, [(one(0, most=100), 0)], False),
    ],
)
def test_admitted_request_stays_unless_its_replica_is_busier(
    own: Candidate, admitted: int, others: list[tuple[Candidate, int]], remains: bool
) -> None:
    assert stays(own, admitted, others) is remains


@given(st.lists(st.builds(Candidate, st.integers(0, 64), st.integers(1, 64), st.floats(0, 1)), min_size=1, max_size=8))
def test_the_chosen_replica_is_never_far_above_the_least(candidates: list[Candidate]) -> None:
    chosen = candidates[choose(candidates)]
    least = min(one.requests / one.max_running for one in candidates)
    assert chosen.requests / chosen.max_running <= least + max(0.25, 2 / chosen.max_running)

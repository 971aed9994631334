"""The replica of a request: the longest cached prefix within the load bound, else the least load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.fleet.routing import Candidate, choose


@pytest.mark.parametrize(
    ("candidates", "at"),
    [
        ([(3, 8, 0.0), (1, 8, 0.0), (2, 8, 0.0)], 1),
        # The prefix wins, up to a quarter of the replica's places.
        ([(0, 8, 0.0), (2, 8, 0.5)], 1),
        ([(0, 8, 0.0), (3, 8, 0.5)], 0),
        ([(0, 8, 0.4), (2, 8, 0.9)], 1),
        # Equal prefixes: the load decides.
        ([(2, 8, 0.9), (1, 8, 0.9)], 1),
        # A small replica takes two more requests than another.
        ([(0, 4, 0.0), (2, 4, 0.5)], 1),
        ([(0, 4, 0.0), (3, 4, 0.5)], 0),
        # Loads are shares: four of sixteen are less than three of eight.
        ([(3, 8, 0.0), (4, 16, 0.0)], 1),
    ],
)
def test_prefix_wins_within_the_load_bound(candidates: list[tuple[int, int, float]], at: int) -> None:
    assert choose([Candidate(*one) for one in candidates]) == at


@given(st.lists(st.builds(Candidate, st.integers(0, 64), st.integers(1, 64), st.floats(0, 1)), min_size=1, max_size=8))
def test_the_chosen_replica_is_never_far_above_the_least(candidates: list[Candidate]) -> None:
    chosen = candidates[choose(candidates)]
    least = min(one.leases / one.max_running for one in candidates)
    assert chosen.leases / chosen.max_running <= least + max(0.25, 2 / chosen.max_running)

"""The restart policy: delays after quick deaths, and giving up."""

from __future__ import annotations

from tokka.engine.supervision.restart import QUICK_S, RestartPolicy


def test_the_first_rebuild_starts_at_once() -> None:
    assert RestartPolicy(5).delay_s(served_s=1) == 0
    assert RestartPolicy(5).delay_s(served_s=3600) == 0


def test_quick_deaths_wait_twice_as_long_each_time() -> None:
    policy = RestartPolicy(100)
    assert [policy.delay_s(0) for _ in range(10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_too_many_quick_deaths_in_a_row_are_the_end() -> None:
    policy = RestartPolicy(3)
    assert [policy.delay_s(QUICK_S - 1) for _ in range(3)] == [0, 1, None]


def test_an_engine_that_served_for_a_while_ends_the_row() -> None:
    policy = RestartPolicy(3)
    for _ in range(20):
        assert policy.delay_s(0) == 0
        assert policy.delay_s(0) == 1
        assert policy.delay_s(QUICK_S) == 0


def test_one_death_can_be_enough() -> None:
    assert RestartPolicy(1).delay_s(0) is None
    assert RestartPolicy(1).delay_s(QUICK_S) == 0

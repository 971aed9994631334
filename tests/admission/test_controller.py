"""Admission: a bound on open work, nothing leaked, nothing new while draining."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokka.admission.controller import AdmissionController
from tokka.errors import Draining, ServerOverloaded, TokkaError


def refusal(admission: AdmissionController, choices: int = 1) -> TokkaError | None:
    try:
        with admission.admit(choices):
            return None
    except TokkaError as error:
        return error


def test_choices_up_to_the_bound_are_admitted() -> None:
    admission = AdmissionController(3)
    with admission.admit(2), admission.admit(1):
        assert admission.open_requests == 2


def test_a_choice_beyond_the_bound_is_refused() -> None:
    admission = AdmissionController(3)
    with admission.admit(2), pytest.raises(ServerOverloaded), admission.admit(2):
        pass


def test_a_refused_request_holds_nothing() -> None:
    admission = AdmissionController(3)
    with admission.admit(3):
        assert isinstance(refusal(admission), ServerOverloaded)
        assert admission.open_requests == 1
    assert refusal(admission, 3) is None


def test_room_is_given_back_at_the_end() -> None:
    admission = AdmissionController(1)
    with admission.admit(1):
        pass
    assert refusal(admission) is None


def test_room_is_given_back_when_the_work_fails() -> None:
    admission = AdmissionController(1)
    with pytest.raises(KeyError), admission.admit(1):
        raise KeyError
    assert refusal(admission) is None


def test_a_request_larger_than_the_bound_runs_alone() -> None:
    admission = AdmissionController(2)
    with admission.admit(5):
        assert isinstance(refusal(admission), ServerOverloaded)


def test_a_request_larger_than_the_bound_waits_its_turn() -> None:
    admission = AdmissionController(2)
    with admission.admit(1):
        assert isinstance(refusal(admission, 5), ServerOverloaded)


def test_an_overloaded_server_names_its_numbers_and_when_to_retry() -> None:
    admission = AdmissionController(3)
    with admission.admit(3):
        error = refusal(admission)
    assert error is not None
    assert "3 choices" in error.message
    assert error.headers()["retry-after"] == "5"


def test_a_draining_server_refuses_what_is_new() -> None:
    admission = AdmissionController(3)
    admission.start_draining()
    error = refusal(admission)
    assert isinstance(error, Draining)
    assert error.headers()["retry-after"] == "5"
    assert admission.is_draining


def test_what_runs_when_draining_begins_keeps_its_place() -> None:
    admission = AdmissionController(3)
    with admission.admit(1):
        admission.start_draining()
        assert admission.open_requests == 1
    assert admission.open_requests == 0


async def test_without_work_the_server_is_idle_at_once() -> None:
    await asyncio.wait_for(AdmissionController(1).idle(), 1)


async def test_idle_waits_for_the_last_request() -> None:
    admission = AdmissionController(3)
    with ExitStack() as first:
        first.enter_context(admission.admit(1))
        with admission.admit(1):
            idle = asyncio.create_task(admission.idle())
        await asyncio.sleep(0)
        assert not idle.done()
    await asyncio.wait_for(idle, 1)


async def test_a_server_with_new_work_is_idle_no_more() -> None:
    admission = AdmissionController(3)
    with admission.admit(1):
        pass
    with admission.admit(1):
        idle = asyncio.create_task(admission.idle())
        await asyncio.sleep(0)
        assert not idle.done()
    await asyncio.wait_for(idle, 1)


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=20))
def test_open_choices_never_exceed_the_bound_but_for_one_large_request(
    bound: int, actions: list[tuple[int, bool]]
) -> None:
    admission = AdmissionController(bound)
    running: list[tuple[int, ExitStack]] = []
    for choices, ends_oldest in actions:
        if ends_oldest and running:
            running.pop(0)[1].close()
        stack = ExitStack()
        try:
            stack.enter_context(admission.admit(choices))
        except ServerOverloaded:
            assert sum(size for size, _ in running) + choices > bound
        else:
            running.append((choices, stack))
        assert sum(size for size, _ in running) <= bound or len(running) == 1
        assert admission.open_requests == len(running)
    for _, stack in running:
        stack.close()
    assert admission.open_requests == 0

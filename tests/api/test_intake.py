"""Requests of a burst begin in order, a few per iteration of the event loop."""

from __future__ import annotations

import asyncio
from functools import partial

from tokka.api.intake import MOST, Intake


async def iterations(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_first_requests_of_an_iteration_begin_at_once() -> None:
    begun: list[int] = []
    intake = Intake()
    reads = [partial(begun.append, number) for number in range(2 * MOST + 1)]
    for read in reads:
        intake.begin(read)
    assert begun == list(range(MOST))
    await iterations(2)
    assert begun == list(range(2 * MOST))
    await iterations(4)
    assert begun == list(range(len(reads)))


async def test_every_iteration_has_the_same_room() -> None:
    begun: list[int] = []
    intake = Intake()
    for _ in range(3):
        for _ in range(MOST):
            intake.begin(partial(begun.append, 0))
        await iterations(2)
    assert len(begun) == 3 * MOST


def full() -> Intake:
    """Return an intake without room in this iteration."""
    intake = Intake()
    for _ in range(MOST):
        intake.begin(lambda: None)
    return intake


async def test_connection_that_leaves_does_not_begin() -> None:
    intake = full()
    begun: list[int] = []
    first, second = partial(begun.append, 1), partial(begun.append, 2)
    intake.begin(first)
    intake.begin(second)
    intake.leave(first)
    await iterations(4)
    assert begun == [2]


async def test_connection_with_more_bytes_begins_once() -> None:
    intake = full()
    begun: list[int] = []
    read = partial(begun.append, 1)
    intake.begin(read)
    intake.begin(read)
    await iterations(4)
    assert begun == [1]


async def test_error_of_one_does_not_reach_the_others() -> None:
    intake = full()
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: errors.append(about["exception"]))
    begun: list[int] = []

    def fail() -> None:
        raise RuntimeError("a fault")

    intake.begin(fail)
    intake.begin(partial(begun.append, 1))
    await iterations(4)
    assert [type(error) for error in errors] == [RuntimeError]

"""The last response of a connection: found once, by its tenant, within the memory for all connections."""

from __future__ import annotations

from tokka.accounts.responses import Kept
from tokka.admission.memory import MemoryBudget
from tokka.dispatch.last_response import LastResponse

ITEMS = [{"type": "message", "role": "user", "content": "x" * 1000}]


def kept(number: int, size: int = 0) -> Kept:
    return Kept({"id": f"resp_{number}", "output": ["y" * size]}, ITEMS)


async def test_last_response_is_taken_once() -> None:
    memory = MemoryBudget(10_000, "tests")
    last = LastResponse(memory)
    await last.keep("a", kept(1))
    found = await last.take("a", "resp_1")
    assert found is not None
    assert (found.response, found.items) == (kept(1).response, ITEMS)
    assert 1000 < found.size < 1200
    assert await last.take("a", "resp_1") is None
    assert memory.held == 0


async def test_last_response_belongs_to_its_tenant() -> None:
    last = LastResponse(MemoryBudget(10_000, "tests"))
    await last.keep("a", kept(1))
    assert await last.take("b", "resp_1") is None
    assert await last.take("a", "resp_2") is None
    assert await last.take("a", "") is None
    assert await last.take("a", "resp_1") is not None


async def test_next_response_replaces_the_last_one() -> None:
    memory = MemoryBudget(10_000, "tests")
    last = LastResponse(memory)
    for number in range(20):
        await last.keep("a", kept(number))
    assert last.id == "resp_19"
    assert memory.held < 1200
    last.clear()
    assert (last.id, memory.held) == ("", 0)


async def test_response_without_room_is_not_kept() -> None:
    memory = MemoryBudget(3000, "tests")
    first, second = LastResponse(memory), LastResponse(memory)
    await first.keep("a", kept(1))
    await second.keep("b", kept(2, 4000))
    assert (first.id, second.id) == ("resp_1", "")
    # The response before it is not the last one any more.
    await first.keep("a", kept(3, 4000))
    assert first.id == ""
    assert memory.held == 0

"""Memory budgets: the bytes that requests hold are bounded, in total and per tenant, and are always given back."""

from __future__ import annotations

import pytest

from tokka.admission.memory import MemoryBudget, Share
from tokka.errors import ServerOverloaded


def refuses(budget: MemoryBudget, tenant: str, size: int) -> bool:
    try:
        budget.take(tenant, size)
    except ServerOverloaded:
        return True
    budget.give_back(tenant, size)
    return False


def test_memory_budget_bounds_all_and_each_tenant() -> None:
    budget = MemoryBudget(100, "bodies")
    budget.take("a", 40)
    assert not refuses(budget, "a", 10)
    assert refuses(budget, "a", 11)
    assert not refuses(budget, "b", 60)
    assert refuses(budget, "b", 61)


def test_memory_budget_lets_a_single_holder_take_more_than_half() -> None:
    budget = MemoryBudget(100, "bodies")
    assert not refuses(budget, "a", 90)
    assert refuses(budget, "a", 101)


def test_memory_share_grows_and_is_released_once() -> None:
    budget = MemoryBudget(100, "bodies")
    share = Share(budget, "a")
    share.grow_to(30)
    share.grow_to(20)
    assert budget.held == 30
    share.grow_to(50)
    assert budget.held == 50
    share.release()
    share.release()
    assert budget.held == 0
    # Tenants come and go for months, so their entries must go, too.
    assert not budget._held_of


def test_memory_share_keeps_its_bytes_when_growing_fails() -> None:
    budget = MemoryBudget(100, "bodies")
    budget.take("b", 40)
    share = Share(budget, "a")
    share.grow_to(50)
    with pytest.raises(ServerOverloaded):
        share.grow_to(70)
    share.release()
    assert budget.held == 40

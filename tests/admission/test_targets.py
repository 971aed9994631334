"""Named targets follow the engine's speed. Targets in seconds stay as given."""

from __future__ import annotations

import pytest

from tokka.admission.targets import Targets, interactive
from tokka.engine_facts import ModelInfo
from tokka.step_costs import StepCosts


def engine(costs: StepCosts | None, step_tokens: int = 8192, copies: int = 1) -> ModelInfo:
    return ModelInfo(4096, 256, "test", "", False, step_tokens=step_tokens * copies, copies=copies, costs=costs)


@pytest.mark.parametrize("copies", [1, 2])
def test_fast_engine_has_the_interactive_targets(copies: int) -> None:
    costs = StepCosts(fixed_s=0.012, per_prompt_token_s=0.00002)
    assert interactive(Targets(), engine(costs, copies=copies)) == Targets(1.0, 0.05)


def test_slow_engine_has_targets_that_it_can_meet() -> None:
    costs = StepCosts(fixed_s=0.1, per_prompt_token_s=0.001)
    assert interactive(Targets(), engine(costs, step_tokens=512)) == Targets(round(4 * 0.612, 3), 0.3)


def test_targets_given_in_seconds_hold() -> None:
    costs = StepCosts(fixed_s=0.1)
    assert interactive(Targets(tpot_s=0.2), engine(costs)) == Targets(1.0, 0.2)
    assert interactive(Targets(2.0, None), engine(costs)) == Targets(2.0, 0.3)


def test_engine_of_unknown_costs_promises_nothing() -> None:
    assert interactive(Targets(), engine(None)) == Targets()

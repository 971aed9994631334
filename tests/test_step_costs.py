"""The cost of a step is learnt from steps, despite noise and outliers, hours without prompts, and changing speed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokka.step_costs import StepCostLearner, StepCosts

TRUE = StepCosts(fixed_s=0.012, per_choice_s=0.0001, per_prompt_token_s=0.00002, per_context_token_s=2e-9)
Step = tuple[int, int, int]


def measured(noise: float = 0.05, outliers: float = 0.02, seed: int = 1) -> Callable[[Step, float], float]:
    """Return a noisy clock for steps. Some steps take four times as long."""
    dice = random.Random(seed)

    def seconds(step: Step, factor: float = 1.0) -> float:
        disturbed = 4.0 if dice.random() < outliers else 1.0
        return TRUE.step_s(*step) * factor * disturbed * math.exp(dice.gauss(0.0, noise))

    return seconds


def started(seconds: Callable[[Step, float], float]) -> StepCostLearner:
    """Return a learner with the measurements of an engine's start."""
    learner = StepCostLearner()
    for step in [(1, 0, 100)] * 8 + [(0, 8192, 0)] * 3 + [(32, 0, 3200)] * 8:
        learner.add(seconds(step, 1.0), *step)
    return learner


def costs_of(learner: StepCostLearner) -> StepCosts:
    assert learner.costs is not None
    return learner.costs


def test_nothing_is_known_before_the_first_step() -> None:
    assert StepCostLearner().costs is None


def test_start_measures_enough_for_a_first_burst() -> None:
    costs = costs_of(started(measured(noise=0.02, outliers=0.0)))
    for step in ((1, 0, 100), (32, 0, 3200), (32, 4000, 3200), (0, 8192, 0)):
        assert costs.step_s(*step) == pytest.approx(TRUE.step_s(*step), rel=0.1)


@pytest.mark.parametrize("times", range(1, 9))
def test_learner_knows_batch_costs_from_the_last_start_steps(times: int) -> None:
    learner = StepCostLearner()
    for step in [(1, 0, 0)] * times + [(0, 8192, 0)] * times + [(32, 0, 0)] * times:
        learner.add(TRUE.step_s(*step), *step)
    assert costs_of(learner).step_s(256) == pytest.approx(TRUE.step_s(256), rel=0.05)


def test_prompts_are_predicted_after_an_hour_of_decoding_alone() -> None:
    seconds, dice = measured(), random.Random(2)
    learner = started(seconds)
    # An hour at 35 ms a step.
    for _ in range(100_000):
        choices = dice.randint(1, 250)
        learner.add(seconds((choices, 0, choices * 600), 1.0), choices, 0, choices * 600)
    costs = costs_of(learner)
    for tokens in (100, 1000, 8192):
        step = (100, tokens, 60_000)
        # The mean includes the outliers: one step in fifty takes four times as long.
        assert costs.step_s(*step) == pytest.approx(1.04 * TRUE.step_s(*step), rel=0.15)


def test_learner_follows_a_changed_speed_within_three_seconds() -> None:
    seconds = measured(outliers=0.0)
    learner = started(seconds)
    step = (100, 0, 60_000)
    for factor in (1.0, 2.0, 1.0):
        passed_s = 0.0
        while passed_s < 3.0:
            took_s = seconds(step, factor)
            learner.add(took_s, *step)
            passed_s += took_s
        # This holds for prompts, too, although none has run at this speed.
        for wanted in (step, (100, 8192, 60_000)):
            assert costs_of(learner).step_s(*wanted) == pytest.approx(factor * TRUE.step_s(*wanted), rel=0.2)


def test_one_long_step_changes_little() -> None:
    seconds = measured(noise=0.01, outliers=0.0)
    learner = started(seconds)
    step = (32, 0, 3200)
    for _ in range(50):
        learner.add(seconds(step, 1.0), *step)
    before_s = costs_of(learner).step_s(*step)
    learner.add(30.0, *step)
    assert costs_of(learner).step_s(*step) < 1.1 * before_s


def test_learner_follows_step_costs_that_rise_in_stairs() -> None:
    learner = StepCostLearner()

    def stairs(choices: int) -> float:
        # As with CUDA graphs, a batch between two sizes costs as much as the larger size.
        return 0.01 + 0.0002 * (1 << (choices - 1).bit_length())

    for _ in range(40):
        for choices in (1, 2, 4, 8, 16, 32, 64, 128, 200):
            learner.add(stairs(choices), choices, 0)
        learner.add(0.2, 0, 8192)
    costs = costs_of(learner)
    for choices in (1, 4, 16, 64, 200):
        assert costs.step_s(choices) == pytest.approx(stairs(choices), rel=0.15)


def test_several_tokens_a_step_make_a_token_cheaper() -> None:
    learner = StepCostLearner()
    for _ in range(600):
        learner.add(0.02, 10, 0, 0, generated=25)
    assert costs_of(learner).token_s(10) == pytest.approx(0.02 / 2.5, rel=0.1)


def test_no_part_is_negative() -> None:
    learner, dice = StepCostLearner(), random.Random(3)
    for _ in range(500):
        learner.add(
            dice.uniform(0.001, 0.1), dice.randint(0, 64), dice.choice([0, 0, 100, 2000]), dice.randint(0, 9999)
        )
    costs = costs_of(learner)
    parts = (costs.fixed_s, costs.per_choice_s, costs.per_prompt_token_s, costs.per_context_token_s)
    assert min(parts) >= 0


# Some steps end at once: in a fixed schedule, a late step makes the next one short.
SECONDS = st.sampled_from([1e-6, 1e-4, 0.003, 0.012, 0.04, 1.0])
STEPS = st.tuples(SECONDS, st.integers(0, 300), st.sampled_from([0, 0, 1, 4096, 8192]), st.integers(0, 50_000))


# The second kind has more context and is faster. No part was left to explain the cost of the first kind.
@example([(0.0005, 32, 0, 0)] * 6 + [(1e-5, 32, 0, 3000)] * 5 + [(0.0005, 128, 0, 20_000)] * 5)
@settings(max_examples=300)
@given(st.lists(STEPS, max_size=60).map(lambda steps: steps * 5))
def test_no_steps_make_it_fail(steps: list[tuple[float, int, int, int]]) -> None:
    learner = StepCostLearner()
    for seconds, *step in steps:
        learner.add(seconds, *step)
        costs = costs_of(learner)
        predicted = [costs.step_s(1), costs.step_s(256, 0, 100_000), costs.prompt_s(1000), costs.token_s(8)]
        assert all(math.isfinite(value) and value >= 0 for value in predicted), costs


def test_steps_that_had_no_context_are_not_taken_for_free() -> None:
    # The start measures steps without context. Then the context grows, and with it the time of a step.
    learner = StepCostLearner()
    for step in [(1, 0, 0)] * 6 + [(0, 8192, 0)] * 3 + [(32, 0, 0)] * 6:
        learner.add(TRUE.step_s(*step), *step)
    for context in range(0, 40_000, 100):
        learner.add(TRUE.step_s(128, 0, context) * 1.5, 128, 0, context)
    assert costs_of(learner).step_s(1) > 0.5 * TRUE.step_s(1)


def test_learner_keeps_its_costs_until_the_next_step() -> None:
    learner = started(measured())
    before = learner.costs
    assert learner.costs is before
    learner.add(4 * TRUE.step_s(1, 0, 100), 1, 0, 100)
    assert costs_of(learner) != before

"""Comparison of two servers that run in turn: the order, the ratios, and which server is ahead."""

from __future__ import annotations

import pytest

from tokka.bench.compare import Comparison, compare, turns
from tokka.bench.figures import Figures
from tokka.bench.metrics import METRICS


def run(goodput: float | None, ttft_s: float = 0.1) -> Figures:
    return {"goodput_per_s": goodput, "ttft_s": {"p50": ttft_s}, "failures": {}}


def by_name(first: list[Figures], second: list[Figures]) -> dict[str, Comparison]:
    return {one.metric.name: one for one in compare(first, second)}


def test_order_changes_from_round_to_round() -> None:
    assert list(turns(3, 2)) == [(0, [0, 1]), (1, [1, 0]), (2, [0, 1])]
    assert list(turns(1, 1)) == [(0, [0])]


def test_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    # The machine was twice as fast in the last round. The ratio of the medians is also 1.5 here.
    found = by_name([run(2), run(3), run(8)], [run(2), run(2), run(4)])["goodput"]
    assert (found.first, found.second) == (3, 2)
    assert found.ratios == (1, 1.5, 2)
    assert found.ratio == 1.5


def test_winner_is_ahead_in_every_round_in_the_figures_direction() -> None:
    ahead = by_name([run(2, 0.2), run(3, 0.3)], [run(1, 0.1), run(2, 0.2)])
    assert (ahead["goodput"].winner, ahead["TTFT p50"].winner) == ("first", "second")
    behind = by_name([run(1, 0.1)], [run(2, 0.2)])
    assert (behind["goodput"].winner, behind["TTFT p50"].winner) == ("second", "first")
    mixed = by_name([run(2), run(1)], [run(1), run(2)])
    assert mixed["goodput"].winner == ""


def test_comparison_omits_missing_figures_and_ratios_of_zero() -> None:
    found = by_name([run(2)], [run(0)])
    assert (found["goodput"].ratio, found["goodput"].winner) == (None, "")
    assert "goodput" not in by_name([run(2)], [run(None)])


def test_times_are_in_milliseconds() -> None:
    assert by_name([run(1, 0.25)], [run(1, 0.5)])["TTFT p50"].first == pytest.approx(250)


def test_metrics_have_names_of_their_own() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)

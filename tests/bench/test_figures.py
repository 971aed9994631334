"""The figures of a run: percentiles, latencies, goodput, refusals, tokens, concurrency, CPU time."""

from __future__ import annotations

import pytest

from tests.bench.records import answered, refused
from tokka.bench.figures import Figures, Window, concurrency, cpu_figures, output_tokens, percentile, summary
from tokka.bench.record import Record

WINDOW = Window(from_s=0, until_s=10, over_s=15)


def figures(records: list[Record], *, stream: bool = True) -> Figures:
    return summary(records, WINDOW, slo_ttft_s=1, slo_tpot_s=0.1, stream=stream)


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([3.0, 1.0], 50) == 1.0
    assert percentile([3.0, 1.0], 51) == 3.0
    assert percentile([], 50) is None


def test_time_per_token_counts_the_gaps_not_the_tokens() -> None:
    assert answered(tpot_s=0.1, tokens=11).tpot_s == pytest.approx(0.1)
    assert answered(tokens=1).tpot_s is None


def test_time_to_first_token_counts_from_when_the_request_was_due() -> None:
    record = answered(due_s=1, ttft_s=0.5)
    record.sent_s = 1.2
    assert record.ttft_s == pytest.approx(0.5)
    assert record.late_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("record", "is_good"),
    [
        (answered(ttft_s=1.0, tpot_s=0.0625), True),
        (answered(ttft_s=1.01), False),
        (answered(tpot_s=0.11), False),
        (answered(tokens=1), True),
        (refused(0, 0.01), False),
        (Record("all", 0, 0, 200, first_s=0.1, last_s=0.2), False),
    ],
)
def test_good_is_answered_to_the_end_within_both_targets(record: Record, is_good: bool) -> None:
    assert record.is_good(1, 0.1) is is_good


def test_goodput_counts_requests_due_in_the_window() -> None:
    found = figures(
        [answered(due_s) for due_s in (-1, 0, 5, 9.9, 10)] + [answered(3, ttft_s=2), refused(4, 0.01), refused(5, 0.3)]
    )
    assert (found["offered"], found["good"], found["goodput_per_s"]) == (6, 3, 0.3)
    assert (found["completed"], found["refused"]) == (4, 2)
    assert found["refusals"] == {"503 server_overloaded": 2}
    assert found["refusal_s"] == {"p50": 0.01, "p99": 0.3, "max": 0.3}
    assert found["refused_after_waiting"] == 1


def test_ttft_lasts_to_the_end_when_no_token_arrives() -> None:
    found = figures([answered(0, ttft_s=0.5), Record("all", 5, 5, 200)])
    assert found["no_first_token"] == 1
    assert found["ttft_s"] == {"p50": 0.5, "p90": 10, "p95": 10, "p99": 10, "max": 10}


def test_tokens_count_when_they_came_and_for_as_many_as_they_were() -> None:
    record = answered(due_s=9, ttft_s=0.5, tpot_s=0.1, tokens=10)
    assert output_tokens([record], WINDOW) == 5
    record.tokens = 20
    assert output_tokens([record], WINDOW) == 10


def test_concurrency_is_the_mean_of_open_requests() -> None:
    assert concurrency([answered(0, 1, 1, 5), answered(8, 1, 1, 10)], WINDOW) == pytest.approx((5 + 2) / 10)


def coalesced(tokens: int, events: int) -> Record:
    record = answered(tpot_s=0.2, tokens=events)
    record.tokens = tokens
    return record


def test_gaps_are_between_events_however_many_tokens_are_in_them() -> None:
    found = figures([coalesced(tokens=16, events=4)])
    assert found["events_per_token"] == 0.25
    assert found["itl_s"] == {"p50": 0.2, "p90": 0.2, "p99": 0.2, "max": 0.2}
    assert found["tpot_s"]["p50"] == pytest.approx(3 * 0.2 / 15)


def test_whole_answers_have_an_end_and_no_first_token() -> None:
    whole = Record("all", 1, 1, 200, ended_s=3.5, tokens=64, finish="length", events_s=[3.5])
    found = figures([whole], stream=False)
    assert found["e2e_s"]["p50"] == 2.5
    assert found["output_tokens_per_s"] == 6.4
    assert [found[name] for name in ("good", "goodput_per_s", "events_per_token", "no_first_token")] == [None] * 4
    assert {found[name]["p50"] for name in ("ttft_s", "itl_s", "tpot_s")} == {None}


def test_figures_count_answers_without_usage() -> None:
    untold = answered()
    untold.tokens = 0
    found = figures([answered(), untold])
    assert (found["without_usage"], found["output_tokens_per_s"]) == (1, 6.4)
    assert untold.tpot_s is None


def test_cpu_time_is_shared_out_over_the_tokens_that_came() -> None:
    used = {"client": 0.5, "front": 1.0, "server": 4.0, "others": 0.0}
    found = cpu_figures(used, [answered(tokens=100), answered(tokens=100)], WINDOW)
    assert found["front_cpu_us_per_token"] == 5_000
    assert found["server_cpu_us_per_token"] == 20_000
    assert found["client_cpu_us_per_token"] == 2_500
    assert found["front_cpu_ms_per_request"] == 500
    assert cpu_figures({"client": 0.5, "others": 0.0}, [], WINDOW)["front_cpu_us_per_token"] is None

"""Metrics: every request counts under exactly one outcome, and Prometheus can read the text."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tokka.core import Key, RequestRecord
from tokka.engine_facts import EngineStats
from tokka.observability.metrics import ENGINE_STATES, OUTCOMES, Metrics

RECORD = RequestRecord(
    id="r",
    arrived_s=100.0,
    endpoint="/v1/completions",
    key=Key("k1", "key-1", frozenset({"inference"})),
    model="m",
    prompt_tokens=10,
    cached_tokens=4,
    completion_tokens=5,
    first_token_s=101.0,
    last_token_s=103.0,
    outcome="stop",
)
ENDPOINT = {"model": "m", "endpoint": "/v1/completions"}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def observed(**fields: Any) -> Metrics:
    metrics = Metrics()
    metrics.observe(replace(RECORD, **fields), now_s=104.0)
    return metrics


LABELS = ("tenant", "model", "endpoint", "outcome", "kind", "reason", "state")


def samples(families: Iterable[Metric], name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in LABELS if label in sample.labels): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_request_counts_once_under_its_outcome(outcome: str) -> None:
    counted = samples(observed(outcome=outcome).registry.collect(), "tokka_requests_total")
    assert counted == {("m", "/v1/completions", outcome): 1.0}


def test_a_request_that_nobody_gave_an_outcome_is_an_error() -> None:
    assert value(observed(outcome=None), "tokka_requests_total", **ENDPOINT, outcome="error") == 1.0


@given(st.lists(st.sampled_from([*OUTCOMES, None]), max_size=30))
def test_outcomes_add_up_to_the_requests(outcomes: list[Any]) -> None:
    metrics = Metrics()
    for outcome in outcomes:
        metrics.observe(replace(RECORD, outcome=outcome), now_s=104.0)
    assert sum(samples(metrics.registry.collect(), "tokka_requests_total").values()) == len(outcomes)


def test_outcomes_match_the_contract() -> None:
    assert set(OUTCOMES) == {"stop", "length", "tool_calls", "aborted", "timeout", "rejected", "invalid", "error"}


def test_durations_are_measured_from_the_arrival() -> None:
    metrics = observed()
    assert value(metrics, "tokka_request_duration_seconds_sum", **ENDPOINT) == 4.0
    assert value(metrics, "tokka_ttft_seconds_sum", **ENDPOINT) == 1.0


def test_time_per_token_leaves_the_first_one_out() -> None:
    assert value(observed(), "tokka_tpot_seconds_sum", **ENDPOINT) == pytest.approx(2.0 / 4)


def test_one_token_alone_has_no_time_per_token() -> None:
    assert value(observed(completion_tokens=1), "tokka_tpot_seconds_count", **ENDPOINT) in (None, 0.0)


def test_a_request_without_a_token_has_a_duration_only() -> None:
    metrics = observed(first_token_s=None, last_token_s=None, completion_tokens=0)
    assert value(metrics, "tokka_request_duration_seconds_count", **ENDPOINT) == 1.0
    assert value(metrics, "tokka_ttft_seconds_count", **ENDPOINT) is None


def test_tokens_are_counted_by_tenant_and_kind() -> None:
    assert samples(observed().registry.collect(), "tokka_tokens_total") == {
        ("key-1", "m", "prompt"): 10.0,
        ("key-1", "m", "cached"): 4.0,
        ("key-1", "m", "completion"): 5.0,
    }


def test_tokens_that_did_not_occur_make_no_series() -> None:
    metrics = observed(prompt_tokens=0, cached_tokens=0, completion_tokens=0)
    assert samples(metrics.registry.collect(), "tokka_tokens_total") == {}


def test_a_rejection_is_counted_by_its_reason() -> None:
    assert value(observed(outcome="rejected", reason="draining"), "tokka_rejections_total", reason="draining") == 1.0


@pytest.mark.parametrize("outcome", [outcome for outcome in OUTCOMES if outcome != "rejected"])
def test_rejections_total_counts_only_rejections(outcome: str) -> None:
    counted = samples(observed(outcome=outcome, reason="x").registry.collect(), "tokka_rejections_total")
    assert counted == {}


@pytest.mark.parametrize("state", ENGINE_STATES)
def test_the_engine_is_in_one_state_at_a_time(state: str) -> None:
    metrics = Metrics()
    metrics.set_engine_state("starting")
    metrics.set_engine_state(state)
    states = samples(metrics.registry.collect(), "tokka_engine_state")
    assert states == {(known,): float(known == state) for known in ENGINE_STATES}


def test_a_new_server_s_engine_is_stopped() -> None:
    assert value(Metrics(), "tokka_engine_state", state="stopped") == 1.0


def test_the_engine_s_numbers_are_read_when_scraped() -> None:
    stats = [EngineStats(running=1, waiting=2)]
    metrics = Metrics()
    metrics.watch(lambda: stats[0], lambda: 10, lambda: 32, lambda: 1.5)
    stats[0] = EngineStats(running=3, waiting=4)
    metrics.look()
    assert value(metrics, "tokka_requests_running") == 3.0
    assert value(metrics, "tokka_requests_waiting") == 14.0
    assert value(metrics, "tokka_admission_limit") == 32.0
    assert value(metrics, "tokka_frontend_cpu_seconds_total") == 1.5


def test_replicas_are_counted_by_their_state() -> None:
    metrics = Metrics()
    states = ["ready", "ready"]
    metrics.watch_model("m", lambda: True, lambda: states)
    states += ["starting", "failed"]
    metrics.look()
    assert samples(metrics.registry.collect(), "tokka_replicas") == {
        ("m", "ready"): 2.0,
        ("m", "starting"): 1.0,
        ("m", "failed"): 1.0,
        ("m", "draining"): 0.0,
    }


def test_starts_are_zero_before_the_first_one() -> None:
    metrics = Metrics()
    metrics.expect_starts("m")
    metrics.count_start("m", "failed")
    assert samples(metrics.registry.collect(), "tokka_replica_starts_total") == {
        ("m", "ready"): 0.0,
        ("m", "failed"): 1.0,
    }


def test_tenants_beyond_a_thousand_share_one_label() -> None:
    metrics = Metrics()
    for place in range(1100):
        metrics.observe(replace(RECORD, key=Key("k", f"tenant-{place}", frozenset())), now_s=104.0)
    tenants = {labels[0] for labels in samples(metrics.registry.collect(), "tokka_tokens_total")}
    assert len(tenants) == 1001
    assert value(metrics, "tokka_tokens_total", tenant="other", model="m", kind="completion") == 500.0


def test_two_servers_in_one_process_count_apart() -> None:
    observed()
    assert samples(Metrics().registry.collect(), "tokka_requests_total") == {}


async def test_watched_values_are_read_only_on_the_loop_thread() -> None:
    readers: list[int] = []

    def read() -> int:
        readers.append(threading.get_ident())
        return 0

    metrics = Metrics()
    metrics.watch(lambda: EngineStats(running=read()), read, read, read)
    metrics.watch_state(lambda: read() == 0, read, read)
    metrics.watch_turns(read)
    metrics.watch_log(read)
    metrics.watch_connections(read)
    await asyncio.to_thread(metrics.render)
    assert readers == []
    metrics.look()
    # The engine's statistics are read three times: for running, waiting and preempted requests.
    assert readers == [threading.get_ident()] * 12


def test_metrics_text_is_valid_for_prometheus() -> None:
    metrics = observed()
    metrics.watch(EngineStats, lambda: 0, lambda: 1, lambda: 0.0)
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert samples(families, "tokka_requests_total")[("m", "/v1/completions", "stop")] == 1.0
    assert not any(math.isnan(sample.value) for family in families for sample in family.samples)


def test_metrics_of_the_dashboards_exist_and_have_a_help_text() -> None:
    metrics = Metrics()
    metrics.watch(EngineStats, lambda: 0, lambda: 1, lambda: 0.0)
    meanings = {family.name: family.documentation for family in metrics.registry.collect()}
    assert set(meanings) >= {
        *("tokka_requests", "tokka_request_duration_seconds", "tokka_ttft_seconds", "tokka_tpot_seconds"),
        *("tokka_requests_running", "tokka_requests_waiting", "tokka_rejections", "tokka_tokens"),
        *(
            "tokka_engine_state",
            "tokka_event_loop_lag_seconds",
            "tokka_frontend_cpu_seconds",
            "tokka_event_loop_turn_seconds",
        ),
    }
    assert [name for name, meaning in meanings.items() if not meaning.endswith(".")] == []


def test_hostile_text_in_a_label_does_not_break_the_format() -> None:
    hostile = 'a"b\\c\nd{}'
    families = text_string_to_metric_families(observed(model=hostile).render().decode())
    assert (hostile, "/v1/completions", "stop") in samples(families, "tokka_requests_total")

"""Compute the figures of a run from the records of its requests. Pure: no clock, no network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokka.bench.record import Record

Figures = dict[str, Any]
# Seconds after which a refused request counts as one that waited first. No server decides for this long.
WAITED_S = 0.1


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` % of the values do not exceed; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def percentiles(values: Sequence[float], *percents: float) -> Figures:
    found = {f"p{percent:g}": percentile(values, percent) for percent in percents}
    found["max"] = max(values, default=None)
    return {name: None if value is None else round(value, 6) for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a run that counts: requests that are due in it, and tokens that arrive in it."""

    from_s: float
    until_s: float
    # When the client gave up on open requests.
    over_s: float

    @property
    def length_s(self) -> float:
        return self.until_s - self.from_s

    def has(self, moment_s: float) -> bool:
        return self.from_s <= moment_s < self.until_s


def output_tokens(records: Iterable[Record], window: Window) -> float:
    """Return the tokens that arrived in the window, of all requests."""
    total = 0.0
    for record in records:
        if record.events_s:
            inside = sum(window.has(at_s) for at_s in record.events_s)
            total += inside * record.tokens / len(record.events_s)
    return total


def concurrency(records: Iterable[Record], window: Window) -> float:
    """Return the mean number of open requests in the window. Only requests that got tokens count."""
    total_s = 0.0
    for record in records:
        if record.events_s:
            ended_s = window.over_s if record.ended_s is None else record.ended_s
            total_s += max(0.0, min(ended_s, window.until_s) - max(record.due_s, window.from_s))
    return total_s / window.length_s


def summary(
    records: Sequence[Record], window: Window, *, slo_ttft_s: float, slo_tpot_s: float, stream: bool = True
) -> Figures:
    """Return the figures of a run; None for undefined ones. `metrics.py` defines the chief figures."""
    counted = [record for record in records if window.has(record.due_s)]
    outcomes = Counter(record.outcome for record in counted)
    # Without streaming, the time of the first token is unknown.
    good = sum(record.is_good(slo_ttft_s, slo_tpot_s) for record in counted) if stream else None
    return {
        "offered": len(counted),
        "offered_per_s": round(len(counted) / window.length_s, 3),
        **{name: outcomes[name] for name in ("completed", "refused", "failed", "cut")},
        "good": good,
        "goodput_per_s": None if good is None else round(good / window.length_s, 3),
        "completed_per_s": round(outcomes["completed"] / window.length_s, 3),
        "output_tokens_per_s": round(output_tokens(records, window) / window.length_s, 2),
        "concurrency": round(concurrency(records, window), 2),
        **_times(counted, window, stream),
        "finish": dict(Counter(record.finish for record in counted if record.finish)),
        "prompt_tokens_mean": _mean([record.prompt_tokens for record in counted if record.prompt_tokens]),
        "output_tokens_mean": _mean([record.tokens for record in counted if record.tokens]),
        "without_usage": sum(record.outcome == "completed" and not record.tokens for record in counted),
        **_refusals([record for record in counted if record.outcome == "refused"]),
        "failures": dict(Counter(str(record.code) for record in counted if record.outcome == "failed")),
        "messages": {record.code: record.message for record in counted if record.message},
        "client_late_s": percentiles([record.late_s for record in counted], 50, 99),
    }


def _times(counted: Sequence[Record], window: Window, stream: bool) -> Figures:
    # A request cut before its first token has waited at least until the end. Leaving it out would improve the figures.
    never = [window.over_s - record.due_s for record in counted if record.outcome == "cut" and record.first_s is None]
    ttft = [record.ttft_s for record in counted if record.ttft_s is not None]
    told = [record for record in counted if record.tokens]
    tokens = sum(record.tokens for record in told)
    return {
        "ttft_s": percentiles(ttft + never if stream else [], 50, 90, 95, 99),
        "no_first_token": len(never) if stream else None,
        "itl_s": percentiles([gap_s for record in counted for gap_s in record.itl_s], 50, 90, 99),
        "tpot_s": percentiles([r.tpot_s for r in counted if r.tpot_s is not None], 50, 90, 95, 99),
        "e2e_s": percentiles([r.e2e_s for r in counted if r.e2e_s is not None], 50, 90, 99),
        "events_per_token": round(sum(len(r.events_s) for r in told) / tokens, 3) if tokens and stream else None,
    }


def _refusals(refused: Sequence[Record]) -> Figures:
    return {
        "refusals": dict(Counter(f"{record.status} {record.code}" for record in refused)),
        "refused_after_waiting": sum(r.ended_s is not None and r.ended_s - r.due_s > WAITED_S for r in refused),
        "refusal_s": percentiles([r.ended_s - r.due_s for r in refused if r.ended_s is not None], 50, 99),
        "refusal_from_sent_s": percentiles([r.ended_s - r.sent_s for r in refused if r.ended_s and r.sent_s], 50, 99),
        "retry_after_s": percentiles([r.retry_after_s for r in refused if r.retry_after_s is not None], 50, 99),
        "no_retry_after": sum(record.retry_after_s is None for record in refused),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 1) if values else None


def cpu_figures(cpu_s: Figures, records: Sequence[Record], window: Window) -> Figures:
    """Return the CPU time in the window, for each token and for each request."""
    tokens = output_tokens(records, window)
    offered = sum(window.has(record.due_s) and record.outcome != "cut" for record in records)
    return {
        "cpu_s": cpu_s,
        "client_cpu_us_per_token": _per(cpu_s["client"], tokens),
        "front_cpu_us_per_token": _per(cpu_s.get("front"), tokens),
        "server_cpu_us_per_token": _per(cpu_s.get("server"), tokens),
        "front_cpu_ms_per_request": _per(cpu_s.get("front"), offered, 1e3),
    }


def _per(total: float | None, count: float, unit: float = 1e6) -> float | None:
    return round(total * unit / count, 2) if total is not None and count else None

"""What each chief figure is: its unit, its formula, and which direction is better. docs/bench.md has the same words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tokka.bench.figures import Figures

# Of what the load was, and how the client did, no direction is better.
Better = Literal["lower", "higher", ""]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    better: Better
    # Where it is among a run's figures.
    path: tuple[str, ...]
    form: str = ".2f"
    # From the figure's unit to this one.
    times: float = 1

    def of(self, figures: Figures) -> float | None:
        value: float | Figures | None = figures
        for name in self.path:
            value = value.get(name) if isinstance(value, dict) else None
        return None if isinstance(value, dict) or value is None else value * self.times

    def cell(self, value: float | None) -> str:
        return "" if value is None else format(value, self.form)


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric, or one for each of the percentiles."""

    name: str
    unit: str
    better: Better
    key: str
    meaning: str
    percents: tuple[str, ...] = ()

    def metrics(self) -> Iterator[Metric]:
        form, times = (".3f", 1e3) if self.unit == "ms" else (".0f" if self.unit in ("", "us") else ".2f", 1)
        for percent in self.percents:
            yield Metric(f"{self.name} {percent}", self.unit, self.better, (self.key, percent), form, times)
        if not self.percents:
            yield Metric(self.name, self.unit, self.better, (self.key,), form, times)


_PERCENTS = ("p50", "p90", "p99")
DEFINITIONS = (
    Definition("offered", "requests/s", "", "offered_per_s", "requests due in the window / its length"),
    Definition(
        "completed", "requests/s", "higher", "completed_per_s", "those answered to a finish reason / its length"
    ),
    Definition(
        "goodput",
        "requests/s",
        "higher",
        "goodput_per_s",
        "those completed within both targets, TTFT <= --slo-ttft and TPOT <= --slo-tpot / its length",
    ),
    Definition(
        "output",
        "tokens/s",
        "higher",
        "output_tokens_per_s",
        "tokens that came within the window / its length. How many an answer has is read from its `usage`, never "
        "from events; they count at the moments of its events, to equal parts. An answer without usage counts none",
    ),
    Definition(
        "TTFT",
        "ms",
        "lower",
        "ttft_s",
        "first event with tokens - when the request was due (open loop) or sent (closed loop); opening a "
        "connection, where none is free, is part of it. Who never had a token counts with the wait until the end",
        _PERCENTS,
    ),
    Definition("ITL", "ms", "lower", "itl_s", "each gap between two consecutive events with tokens", _PERCENTS),
    Definition(
        "events per token",
        "1/token",
        "",
        "events_per_token",
        "events with tokens / tokens. Below 1 the server puts several tokens into an event: its ITL is the gap "
        "between such groups, and not to be compared with that of a server at 1",
    ),
    Definition(
        "TPOT",
        "ms",
        "lower",
        "tpot_s",
        "(last token or finish reason - first token) / (tokens - 1), one number a request",
        _PERCENTS,
    ),
    Definition(
        "E2E", "ms", "lower", "e2e_s", "end of a complete answer - when it was due or sent, as with TTFT", _PERCENTS
    ),
    Definition("concurrency", "requests", "", "concurrency", "requests with answers under way, mean over the window"),
    Definition("refused", "", "lower", "refused", "requests due in the window with a status other than 200"),
    Definition("failed", "", "lower", "failed", "those that broke off, or had an error in the stream"),
    Definition("cut", "", "lower", "cut", "those still open when the client gave up, --grace after the last"),
    Definition(
        "front CPU",
        "us/token",
        "lower",
        "front_cpu_us_per_token",
        "user and system time of the server's first process in the window / tokens that came in it. The kernel counts "
        "in hundredths of a second: use enough tokens",
    ),
    Definition("server CPU", "us/token", "lower", "server_cpu_us_per_token", "the same with all processes under it"),
    Definition("client CPU", "us/token", "", "client_cpu_us_per_token", "the same of `tokka bench` itself"),
    Definition(
        "client late",
        "ms",
        "",
        "client_late_s",
        "when a request was sent - when it was due. Not small beside TTFT: the client had no CPU, trust nothing",
        ("p99",),
    ),
)
METRICS = tuple(metric for definition in DEFINITIONS for metric in definition.metrics())

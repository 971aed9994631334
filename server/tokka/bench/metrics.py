"""The chief figures: units, formulas, and which direction is better. docs/bench.md contains the same texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tokka.bench.figures import Figures

# Empty for figures of the load and of the client: neither direction is better.
Better = Literal["lower", "higher", ""]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number among a run's figures, with its unit and format."""

    name: str
    unit: str
    better: Better
    # Its keys in a run's figures.
    path: tuple[str, ...]
    form: str = ".2f"
    # Factor from the figure's unit to `unit`.
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
    """One metric, or one for each percentile."""

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
        "completed", "requests/s", "higher", "completed_per_s", "due requests that got a finish reason / its length"
    ),
    Definition(
        "goodput",
        "requests/s",
        "higher",
        "goodput_per_s",
        "completed requests within both targets, TTFT <= --slo-ttft and TPOT <= --slo-tpot / its length",
    ),
    Definition(
        "output",
        "tokens/s",
        "higher",
        "output_tokens_per_s",
        "tokens that arrived in the window / its length. The number of tokens comes from the `usage` of a response, "
        "never from its events, and is split equally over the times of its events. Without usage it is 0",
    ),
    Definition(
        "TTFT",
        "ms",
        "lower",
        "ttft_s",
        "first event with tokens - time when the request was due (open loop) or sent (closed loop). It includes "
        "opening a connection if none is free. A request cut without a token counts with its wait until the end",
        _PERCENTS,
    ),
    Definition("ITL", "ms", "lower", "itl_s", "gap between two consecutive events with tokens", _PERCENTS),
    Definition(
        "events per token",
        "1/token",
        "",
        "events_per_token",
        "events with tokens / tokens. Below 1, the server puts several tokens into an event. Its ITL is then the gap "
        "between groups of tokens, so do not compare it with the ITL of a server at 1",
    ),
    Definition(
        "TPOT",
        "ms",
        "lower",
        "tpot_s",
        "(last token or finish reason - first token) / (tokens - 1), one value a request",
        _PERCENTS,
    ),
    Definition(
        "E2E", "ms", "lower", "e2e_s", "end of a complete response - time when due or sent, as for TTFT", _PERCENTS
    ),
    Definition("concurrency", "requests", "", "concurrency", "open requests that got tokens, mean over the window"),
    Definition("refused", "", "lower", "refused", "requests due in the window with a status other than 200"),
    Definition("failed", "", "lower", "failed", "due requests that broke off or had an error in the stream"),
    Definition("cut", "", "lower", "cut", "due requests still open when the client gave up, --grace after --duration"),
    Definition(
        "front CPU",
        "us/token",
        "lower",
        "front_cpu_us_per_token",
        "user and system time of the server's first process in the window / tokens that arrived in it. The kernel "
        "counts in hundredths of a second, so use enough tokens",
    ),
    Definition("server CPU", "us/token", "lower", "server_cpu_us_per_token", "the same with all child processes"),
    Definition("client CPU", "us/token", "", "client_cpu_us_per_token", "the same for `tokka bench` itself"),
    Definition(
        "client late",
        "ms",
        "",
        "client_late_s",
        "time when a request was sent - time when it was due. If it is not small beside TTFT, the client lacked CPU: "
        "do not trust the figures",
        ("p99",),
    ),
)
METRICS = tuple(metric for definition in DEFINITIONS for metric in definition.metrics())

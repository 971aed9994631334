"""Tables of the comparison's results: the median of each figure over the rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from tokka.bench.figures import Figures


@dataclass(frozen=True, slots=True)
class Column:
    """A table column: its title, the figure it shows, and the figure's format."""

    name: str
    # Keys that lead to the figure in a run's figures, separated by spaces.
    path: str
    form: str = ".2f"
    times: float = 1

    def cell(self, runs: Sequence[Figures]) -> str:
        return _cell(_median(runs, self.path), self.form, self.times)


DETAILS = [
    Column("offered/s", "offered_per_s"),
    Column("good/s", "goodput_per_s"),
    Column("completed/s", "completed_per_s"),
    Column("refused", "refused", ".0f"),
    Column("failed", "failed", ".0f"),
    Column("cut", "cut", ".0f"),
    Column("TTFT p50 s", "ttft_s p50", ".3f"),
    Column("p95", "ttft_s p95", ".3f"),
    Column("p99", "ttft_s p99", ".3f"),
    Column("TPOT p50 s", "tpot_s p50", ".3f"),
    Column("p99", "tpot_s p99", ".3f"),
    Column("tokens/s", "output_tokens_per_s", ".0f"),
    Column("refusal p99 ms", "refusal_s p99", ".1f", 1e3),
    Column("client late p99 ms", "client_late_s p99", ".1f", 1e3),
    Column("server CPU s", "cpu_s server", ".1f"),
    Column("front CPU ms/request", "front_cpu_ms_per_request", ".2f"),
    Column("client CPU us/token", "client_cpu_us_per_token", ".0f"),
    Column("others' CPU s", "cpu_s others", ".1f"),
]
REFUSED = [
    Column("refused", "refused", ".0f"),
    Column("of them after waiting", "refused_after_waiting", ".0f"),
    Column("p50 ms", "refusal_s p50", ".1f", 1e3),
    Column("p99", "refusal_s p99", ".1f", 1e3),
    Column("max", "refusal_s max", ".1f", 1e3),
    Column("p99 from sent", "refusal_from_sent_s p99", ".1f", 1e3),
]
SINGLE = [
    Column("asked", "tenants single offered", ".0f"),
    Column("refused", "tenants single refused", ".0f"),
    Column("the other's tokens/s", "tenants many output_tokens_per_s", ".0f"),
    Column("refused to it", "tenants many refused", ".0f"),
]


def _runs(lines: Iterable[Figures], experiment: str, server: str, label: str | None = None) -> list[Figures]:
    return [
        line
        for line in lines
        if line.get("experiment") == experiment and line["server"] == server and label in (None, line["label"])
    ]


def _median(runs: Sequence[Figures], path: str) -> float | None:
    """Return the median over the runs that have the figure, or None if no run has it."""
    found: list[float] = []
    for run in runs:
        value = run["figures"]
        for name in path.split():
            value = value.get(name) if value else None
        if value is not None:
            found.append(value)
    return median(found) if found else None


def _distinct(lines: Iterable[Figures], name: str, experiment: str) -> list[str]:
    """Return the distinct values of a field, in the order of their first appearance."""
    return list(dict.fromkeys(line[name] for line in lines if line.get("experiment") == experiment))


def _goodput(runs: Sequence[Figures]) -> float:
    return _median(runs, "goodput_per_s") or 0.0


def best_goodput(lines: Sequence[Figures], server: str, *, ladder_only: bool = False) -> float:
    """Return a server's highest median goodput at any rate; 0 if there is none."""
    labels = [label for label in _distinct(lines, "label", "goodput") if not (ladder_only and label.endswith("x"))]
    return max((_goodput(_runs(lines, "goodput", server, label)) for label in labels), default=0.0)


def tables(lines: Sequence[Figures], slo_ttft_s: float, slo_tpot_s: float) -> str:
    about = f"Targets: TTFT <= {slo_ttft_s:g} s, TPOT <= {slo_tpot_s:g} s. Medians over the rounds."
    parts = [about, _goodput_table(lines), _refusal_table(lines), _fairness_table(lines)]
    parts += [_details(lines, experiment) for experiment in ("goodput", "refusal", "fairness", "keys")]
    return "\n\n".join(part for part in parts if part)


def _goodput_table(lines: Sequence[Figures]) -> str:
    """Return a row per server: good requests a second, and their share of the server's own best."""
    labels = [label for label in _distinct(lines, "label", "goodput") if label.endswith("x")]
    rows = []
    for server in _distinct(lines, "server", "goodput"):
        best = best_goodput(lines, server)
        cells = [f"{best:.2f}"]
        for label in labels:
            found = _goodput(_runs(lines, "goodput", server, label))
            cells.append(f"{found:.2f} ({found / best:.0%})" if best else f"{found:.2f}")
        rows.append([server, *cells])
    return _table("Goodput, requests/s", ["server", "best", *labels], rows)


def _refusal_table(lines: Sequence[Figures]) -> str:
    rows = []
    for server in _distinct(lines, "server", "refusal"):
        flooded = _runs(lines, "refusal", server, "flooded")
        together = _median(flooded, "output_tokens_per_s")
        alone = _median(_runs(lines, "refusal", server, "served alone"), "output_tokens_per_s")
        cells = [column.cell(flooded) for column in REFUSED]
        rows.append([server, *cells, _cell(together, ".0f"), _cell(alone, ".0f"), _ratio(together, alone, ".0%")])
    head = [column.name for column in REFUSED]
    return _table("Refusals", ["server", *head, "tokens/s", "without the refused", "ratio"], rows)


def _fairness_table(lines: Sequence[Figures]) -> str:
    """Return the single tenant's time to first token, alone and beside the other tenant."""
    rows = []
    for server in _distinct(lines, "server", "fairness"):
        before = _runs(lines, "fairness", server, "alone")
        for label in _distinct(lines, "label", "fairness"):
            if label == "alone":
                continue
            runs = _runs(lines, "fairness", server, label)
            row = [server, label]
            for path in ("tenants single ttft_s p50", "tenants single ttft_s p95"):
                alone, beside = _median(before, path), _median(runs, path)
                row += [_cell(alone, ".3f"), _cell(beside, ".3f"), _ratio(beside, alone, ".2f")]
            rows.append([*row, *(column.cell(runs) for column in SINGLE)])
    head = [
        "server",
        "",
        *(f"TTFT {part}" for part in ("p50 alone", "beside", "ratio", "p95 alone", "beside", "ratio")),
    ]
    return _table("A tenant with single requests", [*head, *(column.name for column in SINGLE)], rows)


def _details(lines: Sequence[Figures], experiment: str) -> str:
    rows = []
    for server in _distinct(lines, "server", experiment):
        for label in _distinct(lines, "label", experiment):
            if runs := _runs(lines, experiment, server, label):
                rows.append([server, label, str(len(runs)), *(column.cell(runs) for column in DETAILS)])
    head = [column.name for column in DETAILS]
    return _table(f"All runs: {experiment}", ["server", "load", "runs", *head], rows)


def _cell(value: float | None, form: str, times: float = 1) -> str:
    return "" if value is None else format(value * times, form)


def _ratio(value: float | None, to: float | None, form: str) -> str:
    return _cell(value / to if value is not None and to else None, form)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

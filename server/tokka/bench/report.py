"""The results of the runs as lines of JSON, rows of tables, and warnings."""

from __future__ import annotations

import os
import platform
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokka import __version__
from tokka.bench.compare import compare
from tokka.bench.metrics import METRICS
from tokka.bench.session import Line, Session, of

Table = tuple[list[str], list[list[str]]]
# Seconds of client delay below which there is no warning: a model's user would not notice them.
LATE_S = 0.005
_CPUINFO = Path("/proc/cpuinfo")


def about(session: Session, command: Sequence[str]) -> Line:
    """Return the data to repeat the runs and to judge the figures, without keys."""
    plan = session.plan
    return {
        "tokka": __version__,
        "command": shlex.join(without_keys(command)),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": {"cpu": cpu_model(), "cores": os.cpu_count()},
        "seed": plan.seed,
        "targets": {"ttft_s": plan.slo_ttft_s, "tpot_s": plan.slo_tpot_s},
        "servers": [{"url": one.url, "model": one.model, **one.version} for one in session.targets],
    }


def without_keys(command: Sequence[str]) -> list[str]:
    """Return the command line with each key replaced by `...`."""
    shown: list[str] = []
    for argument in command:
        if shown and re.fullmatch(r"--(compare-)?api-key", shown[-1]):
            shown.append("...")
        else:
            shown.append(re.sub(r"^(--(compare-)?api-key)=.*", r"\1=...", argument, flags=re.DOTALL))
    return shown


def cpu_model() -> str:
    if _CPUINFO.exists() and (
        found := re.search(r"^model name\s*: (.+)$", _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
    ):
        return found[1]
    return platform.processor() or platform.machine()


def comparisons(session: Session, lines: Sequence[Line]) -> list[Line]:
    """Return the metrics of both servers for each load; an empty list for one server."""
    if len(session.targets) == 1:
        return []
    return [
        {
            "load": load.label,
            "metrics": {
                one.metric.name: {
                    "unit": one.metric.unit,
                    "better": one.metric.better,
                    "first": one.first,
                    "second": one.second,
                    "ratio": one.ratio,
                    "ratios": one.ratios,
                }
                for one in compare(of(lines, 0, load.label), of(lines, 1, load.label))
            },
        }
        for load in session.loads
    ]


def document(session: Session, head: Line, lines: Sequence[Line]) -> dict[str, Any]:
    return {**head, "runs": list(lines), "comparison": comparisons(session, lines)}


def loads_table(session: Session, lines: Sequence[Line]) -> Table:
    """Return one row for each metric and one column for each load."""
    columns = ["metric", "unit", *(load.label for load in session.loads)]
    runs = [of(lines, 0, load.label)[0] for load in session.loads]
    rows = []
    for metric in METRICS:
        values = [metric.of(figures) for figures in runs]
        if any(value is not None for value in values):
            rows.append([metric.name, metric.unit, *map(metric.cell, values)])
    return columns, rows


def comparison_table(session: Session, lines: Sequence[Line], load: str) -> Table:
    """Return one row for each metric: both servers' medians, and their ratios."""
    columns = ["metric", "unit", "better", "first", "second", "first/second", "lowest", "highest", "ahead"]
    rows = []
    for one in compare(of(lines, 0, load), of(lines, 1, load)):
        spread = (one.ratio, min(one.ratios), max(one.ratios)) if one.ratios else ()
        ratios = [f"{ratio:.3f}" for ratio in spread if ratio is not None] or ["", "", ""]
        medians = [one.metric.cell(value) for value in (one.first, one.second)]
        rows.append([one.metric.name, one.metric.unit, one.metric.better, *medians, *ratios, one.winner])
    return columns, rows


def troubles(lines: Sequence[Line]) -> list[str]:
    """Return warnings about the runs, one line each."""
    found = []
    for line in lines:
        figures = line["figures"]
        where = f"{line['load']} on {line['url']}"
        messages = figures["messages"]
        for code, count in {**figures["refusals"], **figures["failures"]}.items():
            message = messages.get(code.partition(" ")[2] or code)
            found.append(f"{where}: {count} requests ended with {code}{f': {message}' if message else ''}")
        if figures["without_usage"]:
            found.append(f"{where}: {figures['without_usage']} responses had no usage; their tokens do not count")
        late_s, ttft_s = figures["client_late_s"]["p99"] or 0.0, figures["ttft_s"]["p99"] or 0.0
        if late_s > max(LATE_S, ttft_s / 10):
            found.append(
                f"{where}: the client was late by {late_s * 1e3:.0f} ms (p99): this machine is too busy to measure on"
            )
        if figures["cut"]:
            found.append(f"{where}: {figures['cut']} requests were still open at the end; raise --grace to wait longer")
    return found

"""Draw latency against load. Needs matplotlib, from the extra `plot`, so import this module only to draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokka.bench.metrics import METRICS, Metric
from tokka.bench.session import Line, Load, Session, of

_PANELS = ("TTFT", "TPOT", "E2E")
_PERCENTS = {"p50": "-", "p90": "--", "p99": ":"}


def draw(session: Session, lines: Sequence[Line], path: Path) -> None:
    """Write a picture with one panel for each latency: its percentiles by load, as medians over the rounds."""
    by_name = {metric.name: metric for metric in METRICS}
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for server, target in enumerate(session.targets):
            for percent, style in _PERCENTS.items():
                points = _points(lines, server, session.loads, by_name[f"{name} {percent}"])
                # One colour for each server.
                axes.plot(*points, style, color=f"C{server}", marker=".", label=f"{target.url} {percent}")
        _label(axes, name, session.loads[0])
    figure.savefig(path, dpi=120)


def _points(
    lines: Sequence[Line], server: int, loads: Sequence[Load], metric: Metric
) -> tuple[list[float], list[float]]:
    found: dict[float, float] = {}
    for load in loads:
        values = [metric.of(figures) for figures in of(lines, server, load.label)]
        if there := [value for value in values if value is not None]:
            found[load.rate if load.rate is not None else load.concurrency or 0] = median(there)
    return sorted(found), [found[place] for place in sorted(found)]


def _label(axes: Axes, name: str, load: Load) -> None:
    axes.set_title(name)
    axes.set_xlabel("requests due a second" if load.rate is not None else "users (concurrency)")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")

"""The table of a comparison with Tokka: medians over the rounds, and ratios within each round. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]

TITLES = {"tokka": "Tokka", "vllm": "vLLM", "vllm-rust": "vLLM Rust"}
# Name, and the keys that lead to it in the figures.
METRICS = (
    ("output tokens/s", ("output_tokens_per_s",)),
    ("prompt tokens", ("prompt_tokens_mean",)),
    ("TTFT p50, s", ("ttft_s", "p50")),
    ("ITL p99, s", ("itl_s", "p99")),
    ("events per token", ("events_per_token",)),
    ("front CPU, us/token", ("front_cpu_us_per_token",)),
    ("front CPU, ms/request", ("front_cpu_ms_per_request",)),
    ("ready after, s", ("ready_s",)),
    ("memory, MB", ("memory_mb",)),
    ("front memory, MB", ("front_memory_mb",)),
)


def table(lines: Sequence[Line]) -> str:
    """Return a row for each figure of each load: the servers' medians, and Tokka's ratio to each other server."""
    servers = [name for name in TITLES if any(line["server"] == name for line in lines)]
    titles = [TITLES[name] for name in servers]
    head = ["load", "figure", *titles, *(f"{titles[0]} / {title}" for title in titles[1:])]
    rows = [head, ["---"] * len(head)]
    for load in dict.fromkeys(line["load"] for line in lines):
        for name, path in METRICS:
            own, *others = (_by_round(lines, load, server, path) for server in servers)
            if own:
                medians = [_median(values) for values in (own, *others)]
                rows.append([load, name, *medians, *(_ratio(own, values) for values in others)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _by_round(lines: Sequence[Line], load: str, server: str, path: Sequence[str]) -> dict[int, float]:
    """Return the figure of each round that has it."""
    found = {line["round"]: _value(line, path) for line in lines if (line["load"], line["server"]) == (load, server)}
    return {place: value for place, value in found.items() if value}


def _value(line: Line, path: Sequence[str]) -> float | None:
    found: Any = line["figures"]
    for name in path:
        found = (found or {}).get(name)
    value: float | None = found
    return value


def _median(values: dict[int, float]) -> str:
    if not values:
        return ""
    middle = statistics.median(values.values())
    return f"{middle:,.0f}" if middle >= 1000 else f"{middle:.4g}"


def _ratio(own: dict[int, float], others: dict[int, float]) -> str:
    """Return the median of the ratios within the rounds, and their range."""
    ratios = [value / others[place] for place, value in own.items() if place in others]
    if not ratios:
        return ""
    middle = f"{statistics.median(ratios):.2f}"
    return f"{middle} ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else middle

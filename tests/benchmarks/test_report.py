"""Tables of the comparison with vLLM's own server: the best goodput, and shares of it."""

from __future__ import annotations

from benchmarks.load.report import best_goodput, tables

from tokka.bench.figures import Figures


def line(server: str, label: str, goodput: float, place: int = 0) -> Figures:
    figures = {"goodput_per_s": goodput, "ttft_s": {"p95": None}}
    return {"experiment": "goodput", "server": server, "label": label, "round": place, "figures": figures}


def test_best_goodput_is_the_highest_median_over_the_rounds() -> None:
    lines = [line("tokka", "4/s", value, place) for place, value in enumerate((3.0, 3.5, 9.0))]
    lines += [line("tokka", "2x", 4.0), line("vllm", "4/s", 8.0)]
    assert best_goodput(lines, "tokka") == 4.0
    assert best_goodput(lines, "tokka", ladder_only=True) == 3.5
    assert best_goodput([], "tokka") == 0.0


def test_table_has_goodput_as_a_percentage_of_the_best() -> None:
    text = tables([line("tokka", "4/s", 4.0), line("tokka", "2x", 3.0)], 1, 0.1)
    assert "| tokka | 4.00 | 3.00 (75%) |" in text

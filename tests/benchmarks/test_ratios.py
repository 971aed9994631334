"""The table of a comparison: a column for each server, and ratios within rounds."""

from __future__ import annotations

from benchmarks.load.ratios import Line, table


def line(server: str, place: int, cpu_ms: float | None, load: str = "x1") -> Line:
    return {"server": server, "round": place, "load": load, "figures": {"front_cpu_ms_per_request": cpu_ms}}


def test_table_has_a_ratio_to_each_other_server() -> None:
    lines = [line("tokka", 0, 4.0), line("vllm-rust", 0, 1.0), line("vllm", 0, 8.0)]
    head, _, row = table(lines).splitlines()
    assert head == "| load | figure | Tokka | vLLM | vLLM Rust | Tokka / vLLM | Tokka / vLLM Rust |"
    assert row == "| x1 | front CPU, ms/request | 4 | 8 | 1 | 0.50 | 4.00 |"


def test_table_has_no_column_of_an_absent_server() -> None:
    head, _, row = table([line("tokka", 0, 4.0), line("vllm", 0, 8.0)]).splitlines()
    assert head == "| load | figure | Tokka | vLLM | Tokka / vLLM |"
    assert row == "| x1 | front CPU, ms/request | 4 | 8 | 0.50 |"


def test_ratios_compare_only_figures_of_the_same_round() -> None:
    # The machine was ten times slower in round 1, and round 2 has no other server.
    lines = [line("tokka", 0, 2.0), line("vllm", 0, 4.0), line("tokka", 1, 20.0), line("vllm", 1, 25.0)]
    lines.append(line("tokka", 2, 3.0))
    assert table(lines).splitlines()[2] == "| x1 | front CPU, ms/request | 3 | 14.5 | 0.65 (0.50 to 0.80) |"


def test_table_omits_ratios_to_a_server_without_the_figure() -> None:
    lines = [line("tokka", 0, 2000.0), line("vllm", 0, None)]
    assert table(lines).splitlines()[2] == "| x1 | front CPU, ms/request | 2,000 |  |  |"

"""The report: commands without keys, warnings about troubled runs, and metrics defined as in docs/bench.md."""

from __future__ import annotations

from pathlib import Path

from tokka.bench.figures import Figures
from tokka.bench.metrics import DEFINITIONS
from tokka.bench.report import troubles, without_keys

PAGE = Path(__file__).parents[2] / "docs" / "bench.md"


def test_command_that_is_kept_has_no_keys() -> None:
    given = ["bench", "--api-key", "tk-a", "--seed", "1", "--compare-api-key=tk-b", "--api-key=tk-c"]
    assert without_keys(given) == [
        "bench", "--api-key", "...", "--seed", "1", "--compare-api-key=...", "--api-key=...",
    ]  # fmt: skip


def test_troubles_have_code_reason_and_remedy() -> None:
    figures = {
        "refusals": {"503 server_overloaded": 2},
        "failures": {"broken": 1},
        "messages": {"server_overloaded": "Come later."},
        "without_usage": 3,
        "cut": 4,
        "client_late_s": {"p99": 0.02},
        "ttft_s": {"p99": 0.1},
    }
    assert troubles([{"load": "5/s", "url": "http://a", "figures": figures}]) == [
        "5/s on http://a: 2 requests ended with 503 server_overloaded: Come later.",
        "5/s on http://a: 1 requests ended with broken",
        "5/s on http://a: 3 responses had no usage; their tokens do not count",
        "5/s on http://a: the client was late by 20 ms (p99): this machine is too busy to measure on",
        "5/s on http://a: 4 requests were still open at the end; raise --grace to wait longer",
    ]


def test_client_that_is_late_by_little_is_no_trouble() -> None:
    quiet: Figures = {"refusals": {}, "failures": {}, "messages": {}, "without_usage": 0, "cut": 0}
    for late_s, ttft_s in ((0.004, 0.001), (0.09, 1.0), (None, None)):
        figures = {**quiet, "client_late_s": {"p99": late_s}, "ttft_s": {"p99": ttft_s}}
        assert troubles([{"load": "5/s", "url": "http://a", "figures": figures}]) == []


def test_page_defines_every_metric_in_the_same_words() -> None:
    page = PAGE.read_text()
    missing = [
        one.name for one in DEFINITIONS if f"| {one.name} | {one.unit} | {one.better} | {one.meaning} |" not in page
    ]
    assert missing == []

"""`tokka downtime`: ids that scripts can read, times in UTC, and one line for each error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.keys import tokka


def listed(folder: Path) -> list[dict[str, Any]]:
    downtimes: list[dict[str, Any]] = json.loads(tokka(folder, "downtime", "list", "--json").stdout)
    return downtimes


def test_a_downtime_is_added_listed_and_removed(tmp_path: Path) -> None:
    options = ["--begin", "2098-12-01T08:00+02:00", "--end", "2098-12-01T10:00:00+02:00", "--reason", "New GPUs"]
    made = tokka(tmp_path, "downtime", "add", *options).stdout.strip()
    (found,) = listed(tmp_path)
    assert found == {
        "id": made,
        "begin": "2098-12-01T06:00:00Z",
        "end": "2098-12-01T08:00:00Z",
        "status": "to come",
        "reason": "New GPUs",
    }
    assert made in tokka(tmp_path, "downtime", "list").stdout
    tokka(tmp_path, "downtime", "remove", made)
    assert listed(tmp_path) == []


def test_without_a_begin_it_begins_now(tmp_path: Path) -> None:
    tokka(tmp_path, "downtime", "add", "--end", "2h", "--reason", "x")
    assert [downtime["status"] for downtime in listed(tmp_path)] == ["under way"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--end", "2098-12-01T08:00"], "--end: '2098-12-01T08:00' has no time zone"),
        (["--begin", "soon", "--end", "2h"], "--begin: 'soon' is not a time"),
        (["--begin", "2h", "--end", "1h"], "--end: it must be after the begin"),
        (["--begin", "2020-01-01T00:00Z", "--end", "2020-01-02T00:00Z"], "--end: it must be in the future"),
        (["--end", "2h", "--reason", ""], "--reason: write one line"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(tmp_path: Path, options: list[str], says: str) -> None:
    result = tokka(tmp_path, "downtime", "add", "--reason", "x", *options, code=2)
    assert result.stderr.startswith(f"tokka: {says}")
    assert len(result.stderr.splitlines()) == 1


def test_remove_reports_an_unknown_downtime(tmp_path: Path) -> None:
    tokka(tmp_path, "keys", "create", "--name", "a")
    assert "downtime 'down_1' not found" in tokka(tmp_path, "downtime", "remove", "down_1", code=2).stderr

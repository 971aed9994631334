"""Decisions stay readable: each ADR has a date and a status, is in the index, and names files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADRS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
STATUS = re.compile(r"^Date: \d{4}-\d{2}-\d{2} · Status: (accepted|superseded by \[?(\d{4}))", re.MULTILINE)
NAMED = re.compile(r"`((?:[a-z_]+/)+[\w.-]+\.(?:py|md|yaml|sh))`")
# ADRs name files of the engine library, too.
FOREIGN = "vllm/"
INDEX = (ROOT / "docs" / "adr" / "README.md").read_text()


@pytest.mark.parametrize("path", ADRS, ids=lambda path: path.name)
def test_adr_has_a_date_and_a_status(path: Path) -> None:
    match = STATUS.search(path.read_text())
    assert match
    if match[2]:
        assert any(other.name.startswith(match[2]) for other in ADRS)


@pytest.mark.parametrize("path", ADRS, ids=lambda path: path.name)
def test_adr_names_files_that_exist(path: Path) -> None:
    for name in NAMED.findall(path.read_text()):
        assert name.startswith(FOREIGN) or (ROOT / name).exists() or (ROOT / "server" / "tokka" / name).exists(), name


@pytest.mark.parametrize("path", ADRS, ids=lambda path: path.name)
def test_adr_is_in_the_index(path: Path) -> None:
    assert path.name in INDEX


def test_adr_numbers_are_distinct() -> None:
    numbers = [path.name[:4] for path in ADRS]
    assert sorted(set(numbers)) == numbers

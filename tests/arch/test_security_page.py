"""docs/security.md names a test for each of its claims, and each test exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_each_test_of_the_security_page_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    existing = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named
    assert named - existing == set()


def test_each_row_of_the_security_page_names_a_test() -> None:
    for section in PAGE.split("\n## "):
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        if rows and rows[0].endswith("| test |"):
            assert [row for row in rows[1:] if "`test_" not in row] == []

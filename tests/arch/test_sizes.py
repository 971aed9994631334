"""Files and functions are small enough to be read at once: at most 400 and 50 lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "server" / "tokka"
MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_has_at_most_400_lines_and_functions_50(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{path}: {node.name}"


@pytest.mark.parametrize("path", sorted((ROOT / "web").iterdir()), ids=lambda path: path.name)
def test_file_of_the_page_has_at_most_400_lines_of_120_characters(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    # Each path of a picture is one line.
    assert [line for line in lines if len(line) > 120 and "<path" not in line] == []

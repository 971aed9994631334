"""Comments, docstrings and test names name their subject: they use few vague words, test names none."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOKKA = ROOT / "server" / "tokka"
VAGUE = re.compile(r"\b(what|who|whoever|those|such)\b", re.IGNORECASE)
# Maximum share of vague lines, in percent.
SHARE = 3.0
# Maximum length of a test name, in characters.
MAX_TEST_NAME = 65
MODULES = sorted(TOKKA.rglob("*.py"))
PACKAGES = sorted({path.parent for path in MODULES})
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{page}.md" for page in ("operating", "tools", "generation", "reliability")),
]


def docstrings(source: str) -> list[str]:
    """Return the docstrings of a module, its classes and functions, the module's first."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, holders)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def comments(source: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def share(lines: list[str]) -> float:
    """Return the percentage of lines with a vague word; one line may always have one."""
    vague = sum(1 for line in lines if VAGUE.search(line))
    return 0.0 if vague <= 1 else 100 * vague / len(lines)


def names_of_tests(source: str) -> list[str]:
    """Return the names of the test functions in a file, including methods of test classes."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, functions)]
    return [name for name in names if name.startswith("test_")]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(TOKKA)))
def test_comments_name_their_subject(package: Path) -> None:
    sources = [path.read_text() for path in package.glob("*.py")]
    lines = [line for source in sources for line in comments(source)]
    lines += [line for source in sources for text in docstrings(source) for line in text.splitlines() if line.strip()]
    assert share(lines) <= SHARE


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_their_subject(page: Path) -> None:
    assert share([line for line in page.read_text().splitlines() if line.strip()]) <= SHARE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TOKKA)))
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_tests_are_short_and_name_their_subject(path: Path) -> None:
    names = names_of_tests(path.read_text())
    assert [name for name in names if len(name) > MAX_TEST_NAME or VAGUE.search(name.replace("_", " "))] == []

"""Code opens text files as UTF-8. Python's default is the locale's encoding, which may be ASCII in a container."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted([*(ROOT / "server").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
READERS = {"read_text", "write_text"}
# Functions that open a file in a mode given as an argument.
OPENERS = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile"}
RUNNERS = {"run", "Popen", "check_output"}


def is_without_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in words:
        return False
    if name in READERS:
        return True
    if name in RUNNERS:
        return "text" in words
    modes = [value.value for value in (*call.args, words.get("mode")) if isinstance(value, ast.Constant)]
    texts = [mode for mode in modes if isinstance(mode, str) and 1 <= len(mode) <= 3 and set(mode) <= set("rwax+t")]
    return name in OPENERS and bool(texts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_opened_as_utf_8(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if is_without_encoding(call)] == []


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("path.open('w')", True),
        ("open(path, 'a')", True),
        ("subprocess.run(command, text=True)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("accounts.open()", False),
    ],
)
def test_missing_encoding_is_found(code: str, is_found: bool) -> None:
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert is_without_encoding(call) is is_found

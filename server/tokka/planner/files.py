"""Reads single files of a model folder. Errors name the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokka.errors import StartupError

# Start of a Git LFS pointer: a small text in place of a large file.
_POINTER = b"version https://git-lfs.github.com/spec/"


def read_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raises StartupError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise StartupError(f"{path} must hold a JSON object; download the model again")
    return content


def read_json(path: Path) -> Any:
    """Return a file's JSON value. Raises StartupError."""
    check_pointer(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON ({error})"
        raise StartupError(f"{path} cannot be read: {reason}; download the model again") from None


def check_pointer(path: Path) -> None:
    """Raise StartupError if Git LFS has not downloaded the file, or the file cannot be opened."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}; check its owner and mode") from None
    if is_pointer:
        raise StartupError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the model"
            " again"
        )

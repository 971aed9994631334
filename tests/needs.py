"""Programs of the system that some tests need."""

from __future__ import annotations

import os
import shutil

import pytest


def need(*programs: str) -> None:
    """Skip the test if one of the programs is missing; in CI, fail."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        reason = f"not on PATH: {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

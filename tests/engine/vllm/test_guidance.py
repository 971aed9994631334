"""Checks that import vLLM run apart: it changes the environment that other tests' servers inherit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_the_engine_follows_ready_grammars_only() -> None:
    checks = Path(__file__).with_name("guidance_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout

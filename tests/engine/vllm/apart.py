"""Runs checks that import vLLM in a separate process: vLLM changes the environment that the tests' servers inherit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def passed(checks: str) -> str:
    """Run a file of checks from this folder in its own process; return its output. Fails if a check fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name(checks))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout

"""Checks that import vLLM run apart: it changes the environment that other tests' servers inherit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def passed(checks: str) -> str:
    """Run a file of checks beside this one in its own process; return what it printed. Fails if one of them does."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name(checks))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout

"""The parser library, apart: importing vLLM changes the environment that other tests' servers inherit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_what_is_read_as_it_comes_is_what_the_library_reads_in_whole() -> None:
    checks = Path(__file__).with_name("parsers_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout

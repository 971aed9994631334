"""Runs checks that import vLLM in a separate process: vLLM changes the environment that the tests' servers inherit."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest


def assert_each_passes(checks: str, subtests: pytest.Subtests) -> None:
    """Run a file of checks from this folder in its own process; report each of its tests as a subtest."""
    outcomes = _outcomes(checks)
    assert outcomes
    for name, failure in outcomes.items():
        with subtests.test(name):
            assert not failure, failure


def _outcomes(checks: str) -> dict[str, str]:
    """Return the failure of each test, empty if it passed. A test that was skipped counts as failed."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report.name}"]
        done = subprocess.run(
            [*command, str(Path(__file__).with_name(checks))], capture_output=True, text=True, check=False
        )
        # 1: a test failed. Anything else but 0 means that they did not run.
        assert done.returncode in (0, 1), done.stdout
        cases = list(ElementTree.parse(report.name).iter("testcase"))
    return {case.get("name", ""): _failure(case) for case in cases}


def _failure(case: ElementTree.Element) -> str:
    parts = [part for part in case if part.tag in ("failure", "error", "skipped")]
    return "\n".join(part.text or part.get("message") or "failed" for part in parts)

"""Run the tests that start no program with branch coverage, and compare each package with its floor.

The floors are in pyproject.toml and may only rise. Tests of the command line, of servers and of the real engine run
them in other processes, which this does not measure, so `cli` and `engine/vllm` are low. Arguments go to pytest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCE = "server/tokka"
# Percentage points above a floor from which it should rise. Property tests vary a little from run to run.
ROOM = 1.0


def measured(arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """Run pytest under slipcover. Return pytest's exit code, and the summary of each file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "coverage.json"
        # slipcover knows older versions of pytest. It warns that it cannot measure branches of the tests themselves.
        python = [sys.executable, "-W", "ignore:Unable to activate pytest branch coverage"]
        slipcover = [*python, "-m", "slipcover", "--source", SOURCE, "--branch", "--json", "--out", str(out)]
        # slipcover imports its pytest plugin before pytest can rewrite the plugin's assertions.
        pytest = ["-m", "pytest", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-m", "not apart", *arguments]
        code = subprocess.run([*slipcover, *pytest], cwd=ROOT, check=False).returncode
        files = json.loads(out.read_text(encoding="utf-8"))["files"] if out.exists() else {}
    return code, {name: file["summary"] for name, file in files.items()}


def package_of(name: str) -> str:
    """Return a file's package below `tokka`. `engine` counts room by room; files of `tokka` itself are `tokka`."""
    parts = Path(name).relative_to(SOURCE).parts[:-1]
    return "/".join(parts[: 2 if parts[:1] == ("engine",) else 1]) or "tokka"


def percentages(files: Mapping[str, Any]) -> dict[str, float]:
    """Return the covered percentage of lines and branches by package."""
    covered: defaultdict[str, int] = defaultdict(int)
    missing: defaultdict[str, int] = defaultdict(int)
    for name, summary in files.items():
        package = package_of(name)
        covered[package] += summary["covered_lines"] + summary["covered_branches"]
        missing[package] += summary["missing_lines"] + summary["missing_branches"]
    return {package: 100 * covered[package] / max(1, covered[package] + missing[package]) for package in covered}


def problems(found: Mapping[str, float], floors: Mapping[str, float]) -> list[str]:
    """Return a line for each package below its floor, without one, or no longer there."""
    lines = [
        f"{package}: coverage {found[package]:.1f} % is below its floor of {floor} %; add tests"
        for package, floor in floors.items()
        if package in found and found[package] < floor
    ]
    lines += [f"{package}: no floor in pyproject.toml; add one" for package in found.keys() - floors.keys()]
    lines += [f"{package}: not measured; remove its floor" for package in floors.keys() - found.keys()]
    return lines


def main() -> int:
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tokka"]["coverage"]
    code, files = measured(sys.argv[1:])
    found = percentages(files)
    for package, percent in sorted(found.items()):
        hint = "  (raise the floor)" if percent > floors.get(package, 100.0) + ROOM else ""
        print(f"coverage {package:24} {percent:5.1f} %  floor {floors.get(package, '-')}{hint}")
    wrong = problems(found, floors)
    for line in wrong:
        print(line, file=sys.stderr)
    return code or bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

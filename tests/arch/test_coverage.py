"""The floors of branch coverage: each package has one, and falling below it fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_floors", ROOT / "scripts" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summary(lines: tuple[int, int], branches: tuple[int, int] = (0, 0)) -> dict[str, int]:
    """Return a file's summary. Each pair holds what is covered and what is not."""
    return {
        "covered_lines": lines[0],
        "missing_lines": lines[1],
        "covered_branches": branches[0],
        "missing_branches": branches[1],
    }


def test_files_count_for_their_package_and_room(coverage: ModuleType) -> None:
    names = ["core.py", "protocol/sse.py", "engine/fake.py", "engine/vllm/start/warmup.py", "web/page/page.py"]
    packages = [coverage.package_of(f"server/tokka/{name}") for name in names]
    assert packages == ["tokka", "protocol", "engine", "engine/vllm", "web"]


def test_lines_and_branches_count_alike(coverage: ModuleType) -> None:
    files = {"server/tokka/api/a.py": summary((6, 2), (1, 1)), "server/tokka/api/b.py": summary((2, 0))}
    assert coverage.percentages(files) == {"api": 75.0}


def test_package_below_its_floor_is_a_problem(coverage: ModuleType) -> None:
    floors = {"api": 90.0, "core": 99.0}
    assert coverage.problems({"api": 90.0, "core": 99.5}, floors) == []
    assert [line.split(":")[0] for line in coverage.problems({"api": 89.9, "core": 99.5}, floors)] == ["api"]


def test_each_package_has_a_floor_and_each_floor_a_package(coverage: ModuleType) -> None:
    assert coverage.problems({"api": 95.0}, {}) == ["api: no floor in pyproject.toml; add one"]
    assert coverage.problems({}, {"api": 95.0}) == ["api: not measured; remove its floor"]

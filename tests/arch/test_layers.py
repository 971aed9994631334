"""A module imports only its own package and lower layers. Some libraries are imported in one place only.

Otherwise imports of vllm spread, and `tokka --help` takes ten seconds.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "server" / "tokka"
MODULES = sorted(
    path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem not in ("__init__", "__main__")
)

LAYERS = [
    "downtime errors loopback required_calls step_costs suggestions tasks",
    "core engine_facts",
    "prompt_size",
    "settings observability bench turns sandbox planner",
    "protocol store",
    "engine admission accounts",
    "dispatch parsing fleet",
    "api",
    "app_models",
    "app",
    "cli",
]
# The rooms inside engine/, and its single modules.
ENGINE_LAYERS = [
    "base engine_args control_groups markers prefixes schema_example",
    "replicas",
    "host generation reading templates supervision",
    "grammars script scripted_answer scripted_steps scripted_vectors",
    "fake vllm remote",
    "factory",
]


def ranks(layers: list[str]) -> dict[str, int]:
    """Return the row of each name, the lowest row first."""
    return {name: rank for rank, names in enumerate(layers) for name in names.split()}


RANK = ranks(LAYERS)
ENGINE_RANK = ranks(ENGINE_LAYERS)
ONLY_IN = {
    "vllm": "engine/vllm",
    "torch": "engine/vllm",
    "transformers": "engine/vllm",
    "llguidance": "engine/grammars engine/vllm",
    "jinja2": "engine/templates",
    "huggingface_hub": "planner",
    "msgspec": "protocol/worker engine/vllm",
    "cryptography": "fleet/token_file.py accounts",
    "fastapi": "api app.py",
    "starlette": "api app.py",
    "uvicorn": "api cli/serve.py",
    "sqlalchemy": "store",
    "alembic": "store",
    "psycopg": "store",
}


def imported(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def part_of(name: str, package: str = "tokka") -> str | None:
    """Return the part of the package that an imported name belongs to; None if it belongs to another package."""
    match = re.match(rf"{re.escape(package)}\.(\w+)", name)
    return match[1] if match else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_lower_layers(path: Path) -> None:
    here = path.relative_to(ROOT)
    mine = here.parts[0].removesuffix(".py")
    for name in imported(path):
        if theirs := part_of(name):
            assert theirs == mine or RANK[theirs] < RANK[mine], f"{here} may not import {name}"
        allowed = ONLY_IN.get(name.partition(".")[0])
        assert not allowed or str(here).startswith(tuple(allowed.split())), f"{here} may not import {name}"


ENGINE_MODULES = [path for path in MODULES if path.is_relative_to(ROOT / "engine") and path.name != "__init__.py"]


@pytest.mark.parametrize("path", ENGINE_MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_engine_room_imports_only_lower_rooms(path: Path) -> None:
    mine = path.relative_to(ROOT / "engine").parts[0].removesuffix(".py")
    for name in imported(path):
        if theirs := part_of(name, "tokka.engine"):
            assert theirs == mine or ENGINE_RANK[theirs] < ENGINE_RANK[mine], f"{path.name} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_database_is_asked_by_accounts_alone(path: Path) -> None:
    # A request that waits for the database fails when the database does.
    here = path.relative_to(ROOT)
    if here.parts[0] not in ("store", "accounts", "cli", "app.py"):
        assert "store" not in map(part_of, imported(path)), f"{here} may not import store"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_load_generator_is_no_part_of_the_server(path: Path) -> None:
    here = path.relative_to(ROOT)
    if here.parts[0] not in ("bench", "cli"):
        assert "bench" not in map(part_of, imported(path)), f"{here} may not import bench"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_environment_is_read_in_settings_alone(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    # Engine processes are configured through the environment. Sandboxed processes get only a part of it.
    if not here.startswith(("settings/", "engine/vllm", "sandbox/")):
        assert "os.environ" not in path.read_text(), f"{here} touches the environment"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_events_are_written_in_one_place(path: Path) -> None:
    # `tokka chat` and `tokka bench` read the events.
    if str(path.relative_to(ROOT)) not in ("protocol/sse.py", "cli/chat.py", "bench/record.py"):
        assert not re.search(r"""["'\\n]data: """, path.read_text())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_constraints_are_made_in_one_module(path: Path) -> None:
    # The warm-up runs a constraint of no request.
    if str(path.relative_to(ROOT)) not in ("protocol/constraint.py", "engine/vllm/start/warmup.py"):
        assert not re.search(r"\bConstraint\(", path.read_text())


TESTS = [path for folder in ("tests", "benchmarks") for path in (ROOT.parents[1] / folder).rglob("*.py")]


def test_helpers_of_tests_are_not_in_test_modules() -> None:
    # Importing a test module would collect its tests and fixtures a second time.
    names = {name for path in TESTS if "apps" not in path.parts for name in imported(path)}
    assert not [name for name in names if re.match(r"tests\.(\w+\.)*test_", name)]

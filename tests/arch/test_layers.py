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
    "step_costs errors loopback",
    "core engine_facts",
    "settings observability bench turns",
    "protocol store",
    "engine admission accounts",
    "dispatch parsing",
    "api",
    "app",
    "cli",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
ONLY_IN = {
    "vllm": "engine/vllm",
    "torch": "engine/vllm",
    "transformers": "engine/vllm",
    "llguidance": "engine/vllm",
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


def package_of(name: str) -> str | None:
    match = re.match(r"tokka\.(\w+)", name)
    return match[1] if match else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_lower_layers(path: Path) -> None:
    here = path.relative_to(ROOT)
    mine = here.parts[0].removesuffix(".py")
    for name in imported(path):
        if theirs := package_of(name):
            assert theirs == mine or RANK[theirs] < RANK[mine], f"{here} may not import {name}"
        allowed = ONLY_IN.get(name.partition(".")[0])
        assert not allowed or str(here).startswith(tuple(allowed.split())), f"{here} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_database_is_asked_by_accounts_alone(path: Path) -> None:
    # A request that waits for the database fails when the database does.
    here = path.relative_to(ROOT)
    if here.parts[0] not in ("store", "accounts", "cli", "app.py"):
        assert "store" not in map(package_of, imported(path)), f"{here} may not import store"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_load_generator_is_no_part_of_the_server(path: Path) -> None:
    here = path.relative_to(ROOT)
    if here.parts[0] not in ("bench", "cli"):
        assert "bench" not in map(package_of, imported(path)), f"{here} may not import bench"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_environment_is_read_in_settings_alone(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    # Engine processes are configured through the environment. Sandboxed processes get only a part of it.
    if not here.startswith(("settings/", "engine/vllm", "engine/sandbox")):
        assert "os.environ" not in path.read_text(), f"{here} touches the environment"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_events_are_written_in_one_place(path: Path) -> None:
    # `tokka chat` and `tokka bench` read the events.
    if str(path.relative_to(ROOT)) not in ("api/sse.py", "cli/chat.py", "bench/record.py"):
        assert not re.search(r"""["'\\n]data: """, path.read_text())

"""Anthropic's package for Node.js and the AI SDK's provider against `tokka serve` with the scripted engine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import npm
from tests.clients.conftest import FakeServer, StartServer
from tokka.engine.scripted_answer import REASONING

FOLDER = Path(__file__).parent / "apps" / "anthropic_node"
RUN_S = 60

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a copy of the checks; return its folder."""
    folder = tmp_path_factory.mktemp("node") / "checks"
    npm.install_locked(FOLDER, folder)
    return folder


@pytest.fixture(scope="module")
def agent_server(start_server: StartServer) -> Iterator[FakeServer]:
    with start_server("--engine-arg", "tool_calls=true", "--engine-arg", "thoughts=true") as server:
        yield server


def facts(installed: Path, server: FakeServer, check: str) -> dict[str, Any]:
    env = {"PATH": os.environ["PATH"], "TOKKA_URL": server.url, "TOKKA_MODEL": server.model, "NO_PROXY": "127.0.0.1"}
    command = ["node", f"{check}.mjs"]
    done = subprocess.run(command, cwd=installed, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_anthropic_sdk_works_on_node(installed: Path, agent_server: FakeServer) -> None:
    found = facts(installed, agent_server, "check_sdk")
    assert found["texts"] == [agent_server.answer] * 3
    assert found["usage"][0] == found["usage"][1]
    assert found["call"] == ["now", {"zone": "UTC"}, "tool_use"]
    assert (found["tokens"], found["models"]) == (len("user: Hello\n"), [agent_server.model])
    assert found["error"] == ["NotFoundError", 404, True]


def test_ai_sdk_works_with_anthropics_provider(installed: Path, agent_server: FakeServer) -> None:
    found = facts(installed, agent_server, "check_ai_sdk")
    assert found["texts"] == [agent_server.answer] * 3
    assert found["reasoning"] == REASONING
    assert (found["ran"], found["steps"]) == (["UTC"], 2)
    assert isinstance(found["object"]["people"], int)
    name, status, message = found["error"]
    assert (name, status) == ("AI_APICallError", 404)
    assert "no-such-model" in message


def test_lock_file_of_the_checks_names_no_registry() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all("resolved" not in package and package["integrity"] for package in packages.values())

"""Published clients of the Responses API, each in its own environment, against the scripted engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients import npm
from tests.clients.checks import APPS, BY_CHECK, DOCUMENT, NO_MODEL, QUIET, Client, missing
from tests.clients.conftest import FakeServer, StartServer

NODE = APPS / "responses_node"
PERSON_FIELDS = {"name", "age", "mood"}
RUN_S = 90


@pytest.fixture(scope="module")
def agent_server(start_server: StartServer) -> Iterator[FakeServer]:
    with start_server("--engine-arg", "tool_calls=true") as server:
        yield server


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a copy of the checks for Node.js; return its folder."""
    folder = tmp_path_factory.mktemp("node") / "checks"
    npm.install_locked(NODE, folder)
    return folder


def run(command: list[str], folder: Path, server: FakeServer) -> dict[str, Any]:
    """Run a check and return the facts it prints."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "TOKKA_URL": server.url, "TOKKA_MODEL": server.model}
    env |= {**QUIET, "no_proxy": "127.0.0.1", "TOKKA_CHECK": "check-responses"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def python_facts(client: Client, check: str, server: FakeServer, folder: Path) -> dict[str, Any]:
    if reason := missing(client):
        if os.environ.get("CI") == "true" or os.environ.get("TOKKA_CLIENTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    python = client.stamp.parent / "bin" / "python"
    found = run([str(python), str(APPS / f"check_{check}.py")], folder, server)
    assert found["contacted"] == ["127.0.0.1"]
    return found


def check_facts(found: dict[str, Any], server: FakeServer) -> None:
    """Check the facts that all Python clients print."""
    assert set(found["texts"]) == {server.answer}
    assert found["usage"] == found["stream_usage"]
    assert found["usage"][1] == server.answer_tokens
    assert found["second_input"] > found["usage"][0] + len(server.answer)
    assert found["person"].keys() == PERSON_FIELDS
    assert NO_MODEL in found["error"][1]


@pytest.mark.clients
def test_agents_sdk_works_over_http_and_websocket(agent_server: FakeServer, tmp_path: Path) -> None:
    found = python_facts(BY_CHECK["agents"], "responses_agents", agent_server, tmp_path)
    for facts in (found["http"], found["websocket"]):
        check_facts(facts, agent_server)
        assert len(facts["ran"]) == 1
    assert found["http"]["error"][0] == "NotFoundError"
    assert found["http"]["usage"] == found["websocket"]["usage"]


@pytest.mark.clients
def test_langchain_works_with_the_responses_api(agent_server: FakeServer, tmp_path: Path) -> None:
    found = python_facts(BY_CHECK["langchain"], "responses_langchain", agent_server, tmp_path)
    check_facts(found, agent_server)
    assert found["cut"] == [agent_server.answer.encode()[:3].decode(errors="ignore"), "incomplete"]
    assert found["call"] == found["streamed_call"]
    assert (found["call"][0], found["call"][1]["city"] in ("Oulu", "Turku")) == ("get_weather", True)


@pytest.mark.node
def test_openai_package_works_on_node(installed: Path, agent_server: FakeServer) -> None:
    found = run(["node", "check_openai.mjs"], installed, agent_server)
    assert found["texts"] == [agent_server.answer] * 5
    assert found["usage"][0] == found["usage"][1]
    assert found["call"] == ["now", {"zone": "UTC"}]
    assert isinstance(found["object"]["people"], int)
    assert found["items"] == ["function_call_output", "function_call", "message"]
    assert found["errors"] == [["NotFoundError", 404, "model"], ["BadRequestError", 400, "temperature"]]


@pytest.mark.node
def test_ai_sdk_works_with_openais_provider(installed: Path, agent_server: FakeServer) -> None:
    found = run(["node", "check_ai_sdk.mjs"], installed, agent_server)
    assert found["texts"] == [agent_server.answer] * 4
    assert found["usage"][0] == found["usage"][1]
    assert found["usage"][0][1] == agent_server.answer_tokens
    assert (found["ran"], found["steps"]) == (["UTC", "UTC"], 2)
    assert isinstance(found["object"]["people"], int)
    (name, status, message), (_, other, field) = found["errors"]
    assert (name, status, other) == ("AI_APICallError", 404, 400)
    assert NO_MODEL in message
    assert "temperature" in field


def test_document_names_the_tested_versions() -> None:
    wanted = json.loads((NODE / "package.json").read_text())["dependencies"]
    versions = {
        "openai (Python)": openai.__version__,
        "openai-agents": BY_CHECK["agents"].version,
        "langchain-openai": BY_CHECK["langchain"].version,
        "openai (Node.js)": wanted["openai"],
        "@ai-sdk/openai": wanted["@ai-sdk/openai"],
    }
    # The table of these clients, up to the next one.
    section = DOCUMENT.read_text().partition("clients of the Responses API")[2].partition("These clients")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (\d\S*) \| works \|", section, re.MULTILINE))
    assert rows.items() >= versions.items()


def test_lock_file_of_the_checks_names_no_registry() -> None:
    lock = json.loads((NODE / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all("resolved" not in package and package["integrity"] for package in packages.values())
